"""Everything wrong at once, on a real server: no Triton, another pack's attention on the model, a video too small or a
model we do not know. The run is what it would be without us, and the user is told in one line what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.listening import follow
from tools.comfyui.path import NOT_FOUND, ComfyUIInstall, find_all_comfyui
from tools.comfyui.server import ComfyUIServer

PACKS = Path(__file__).parent / "packs"
INSTALLS = find_all_comfyui()
APPLY, CALLS = "3", 2 * 2


@pytest.fixture(scope="module", params=INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUIServer]:
    install: ComfyUIInstall | None = request.param
    if install is None:
        pytest.skip(NOT_FOUND)
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "triton").mkdir()
    (folder / "triton" / "__init__.py").write_text("raise ImportError('no Triton on this machine')\n")
    paths = folder / "paths.yaml"
    paths.write_text(f"wrong:\n  base_path: {folder}\n  custom_nodes: {PACKS}\n", encoding="utf-8")
    options = ["--extra-model-paths-config", str(paths)]
    with ComfyUIServer(install, options=options, environment={"PYTHONPATH": str(folder)}) as started:
        yield started


def workflow(kind: str, latent: dict[str, Any]) -> dict[str, Any]:
    """Two steps of a toy model through another pack's attention and ours, as it comes."""
    sampler = {"seed": 7, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sampler |= {"model": [APPLY, 0], "positive": ["1", 1], "negative": ["1", 1], "latent_image": ["4", 0]}
    return {
        "1": {"class_type": "StandInModel", "inputs": {"kind": kind}},
        "2": {"class_type": "StandInForeignAttention", "inputs": {"model": ["1", 0]}},
        APPLY: {"class_type": "ApplyDraftAttention", "inputs": {"model": ["2", 0], **DEFAULTS}},
        "4": latent,
        "5": {"class_type": "KSampler", "inputs": sampler},
        "6": {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": kind}},
    }


DEFAULTS = {
    "preset": "auto",
    "sparsity": 0.75,
    "dense_start": 0.1,
    "tail": "auto",
    "blocks": "128/64",
    "tile": "auto",
    "dense_layers": "",
    "min_tokens": 12000,
    "keep_first_frame": False,
    "keep_last_frame": False,
    "backend": "auto",
    "strict": False,
}
SMALL_VIDEO = {
    "class_type": "EmptyHunyuanLatentVideo",
    "inputs": {"width": 128, "height": 96, "length": 9, "batch_size": 1},
}
PICTURE = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 80, "height": 64, "batch_size": 1}}


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("kind", "latent", "line"),
    [
        (
            "Wan",
            SMALL_VIDEO,
            f"DraftAttention: nothing was sparse ({CALLS} too few tokens): the video is too small to gain anything: "
            "raise size or length, or lower min_tokens",
        ),
        (
            "unknown",
            PICTURE,
            f"DraftAttention: nothing was sparse ({CALLS} unknown token grid): the token grid of Flux is not known to "
            "DraftAttention: this model is not supported: remove the node",
        ),
    ],
    ids=["a video too small", "a model unknown"],
)
def test_one_line_says_what_happened_and_what_to_do(
    server: ComfyUIServer, kind: str, latent: dict[str, Any], line: str
) -> None:
    before = len(server.log())
    told, kinds = follow(server, workflow(kind, latent))

    log = server.log()[before:]
    assert kinds[-1] == "execution_success", log
    assert told[APPLY][-1] == line
    ours = [found for found in log.splitlines() if "DraftAttention" in found]
    assert len(ours) == 1 and ours[0].endswith(line), ours
    assert "Traceback" not in server.log() and "IMPORT FAILED" not in server.log()
    assert list(server.output.glob(f"{kind}_*.latent"))
