"""A real ComfyUI server over HTTP and websocket: the pack loads without complaint and the demo workflow runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.comfyui.listening import follow
from tools.comfyui.path import NOT_FOUND, PACK_ROOT, ComfyUIInstall, find_all_comfyui
from tools.comfyui.server import ComfyUIServer

INSTALLS = find_all_comfyui()
CHECKPOINT = PACK_ROOT / "demo" / "tiny_wan.safetensors"
WORKFLOW = PACK_ROOT / "workflows" / "api" / "demo_tiny_wan.json"
OLDEST_FOR_CHECKPOINT = (0, 15, 1)
STEPS, LAYERS = 2, 5
TEXT_EVENT = 3

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module", params=INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
def server(request: pytest.FixtureRequest) -> Iterator[ComfyUIServer]:
    install: ComfyUIInstall | None = request.param
    if install is None:
        pytest.skip(NOT_FOUND)
    with ComfyUIServer(install, [CHECKPOINT] if CHECKPOINT.exists() else []) as running:
        yield running


def test_the_pack_loads_without_complaint(server: ComfyUIServer) -> None:
    log = server.log()
    assert "IMPORT FAILED" not in log and "Cannot import" not in log
    assert not [line for line in log.splitlines() if "draftattention" in line.lower() and "error" in line.lower()]


def test_every_input_of_every_node_is_explained(server: ComfyUIServer) -> None:
    ours = [info for info in server.get("/object_info").values() if "draft attention" in info["category"]]
    assert {"ApplyDraftAttention", "SparsityScheduler"} <= {info["name"] for info in ours}
    for info in ours:
        assert info["description"], info["name"]
        for name, spec in [item for part in ("required", "optional") for item in info["input"].get(part, {}).items()]:
            assert spec[1].get("tooltip"), f"{info['name']}.{name} has no tooltip"


def test_demo_workflow(server: ComfyUIServer) -> None:
    version = tuple(int(part) for part in server.install.version.split(".")[:3])
    if version < OLDEST_FOR_CHECKPOINT:
        pytest.skip(f"ComfyUI {server.install.version} cannot read the configuration in the demo's checkpoint")
    prompt: dict[str, Any] = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    prompt["6"]["inputs"].update(width=176, height=112, length=17)
    prompt["7"]["inputs"].update(steps=STEPS)
    prompt["2"]["inputs"].update(dense_start=0.0)

    told, kinds = follow(server, prompt)

    assert "execution_error" not in kinds and kinds[-1] == "execution_success"
    assert "progress" in kinds
    summary = f"DraftAttention: {STEPS * LAYERS} of {STEPS * LAYERS} self-attention calls sparse"
    first = f"step 2 of {STEPS}: {LAYERS} of {LAYERS} self-attention calls sparse"
    # A slow machine is told the time that is left as well.
    assert told["2"][0] == f"step 1 of {STEPS}" and told["2"][1].startswith(first), "told while it samples"
    assert told["2"][-1].startswith(summary), told
    assert summary in server.log()
    (latent,) = (server.output / "draftattention").glob("demo_*.latent")
    samples = load_file(latent)["latent_tensor"]
    assert tuple(samples.shape) == (1, 16, 5, 14, 22) and samples.isfinite().all()
