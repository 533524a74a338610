"""Every workflow is valid on every ComfyUI at hand: by our own rules and by the host's own validation."""

from __future__ import annotations

import copy
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.comfyui.workflow_check import BROWSER_ONLY, files, problems, to_api
from tools.comfyui.path import NOT_FOUND, PACK_ROOT, ComfyUIInstall, find_all_comfyui
from tools.comfyui.server import ComfyUIServer
from tools.workflows.graph import Graph

FOLDER = PACK_ROOT / "workflows"
PATHS = sorted(FOLDER.glob("*.json"))
INSTALLS = find_all_comfyui()


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


@dataclass(frozen=True)
class Host:
    """A running ComfyUI that has an empty file for every model the workflows name."""

    server: ComfyUIServer
    info: dict[str, Any]


@pytest.fixture(scope="module", params=INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    install: ComfyUIInstall | None = request.param
    if install is None:
        pytest.skip(NOT_FOUND)
    with ComfyUIServer(install) as server:
        for path in PATHS:
            for folder, name in files(load(path)):
                (server.base / "models" / folder).mkdir(parents=True, exist_ok=True)
                (server.base / "models" / folder / name).touch()
        (server.base / "models" / "diffusion_models" / "tiny_wan.safetensors").touch()
        (server.base / "input").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(server.base / "input" / "example.png")
        yield Host(server, server.get("/object_info"))


def test_all_workflows_are_there_with_their_pictures() -> None:
    names = {path.stem for path in PATHS}
    assert {
        "wan21_t2v_14b",
        "wan22_t2v_two_experts",
        "wan22_i2v_4step_lora",
        "wan22_5b",
        "hunyuanvideo15_t2v_720p",
        "hunyuanvideo_t2v",
        "ab_compare",
        "demo_tiny_wan",
    } <= names
    for name in names:
        with Image.open(FOLDER / f"{name}.jpg") as picture:
            assert picture.width >= 1200, name


@pytest.mark.parametrize("path", [path for path in PATHS if path.stem != "demo_tiny_wan"], ids=lambda path: path.stem)
def test_every_file_is_named_with_its_link_in_a_note(path: Path) -> None:
    workflow = load(path)
    notes = "\n".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in BROWSER_ONLY)
    models = [model for node in workflow["nodes"] for model in node.get("properties", {}).get("models", ())]
    assert models
    for model in models:
        assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(model["name"])
        assert model["url"] in notes and f"`{model['directory']}`" in notes
    named = [
        value
        for node in workflow["nodes"]
        if node["type"] not in BROWSER_ONLY
        for value in node["widgets_values"]
        if str(value).endswith(".safetensors")
    ]
    assert set(named) == {model["name"] for model in models}


def test_the_demo_s_note_says_where_its_weights_are_and_how_previews_are_switched_on() -> None:
    workflow = load(FOLDER / "demo_tiny_wan.json")
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in BROWSER_ONLY)
    (weights,) = (model for node in workflow["nodes"] for model in node.get("properties", {}).get("models", ()))
    assert weights["url"] in note and f"ComfyUI/models/{weights['directory']}" in note
    assert (PACK_ROOT / "demo" / weights["name"]).is_file() and weights["url"].endswith(f"/demo/{weights['name']}")
    assert "Live preview method" in note and "latent2rgb" in note
    kinds = {node["type"] for node in workflow["nodes"]}
    assert {"DraftAttentionCompare", "DraftAttentionReport", "SparsityScheduler"} <= kinds, "picture, report, curve"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_our_node_stands_between_the_model_and_the_sampler(path: Path) -> None:
    workflow = load(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    sources = {(target, slot): source for _, source, _, target, slot, _ in workflow["links"]}
    samplers = [
        node for node in nodes.values() if node["type"] in ("KSampler", "KSamplerAdvanced", "CFGGuider", "BasicGuider")
    ]
    patched = 0
    for sampler in samplers:
        slot = next(i for i, item in enumerate(sampler["inputs"]) if item["type"] == "MODEL")
        chain = []
        at = sources[(sampler["id"], slot)]
        while at is not None:
            chain.append(nodes[at]["type"])
            slots = [i for i, item in enumerate(nodes[at]["inputs"]) if item["type"] == "MODEL"]
            at = sources.get((at, slots[0])) if slots else None
        assert chain[-1] == "UNETLoader"
        patched += "ApplyDraftAttention" in chain
    assert patched == len(samplers) - (path.stem in ("ab_compare", "demo_tiny_wan")), "one runs dense, to compare with"


@pytest.mark.comfyui
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_host_has_every_node_input_and_link(host: Host, path: Path) -> None:
    assert problems(load(path), host.info) == []


@pytest.mark.comfyui
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_host_itself_accepts_the_workflow(host: Host, path: Path) -> None:
    # It is queued and ends at the first empty model file.
    assert host.server.submit(to_api(load(path), host.info))


@pytest.mark.comfyui
def test_the_rules_find_what_is_wrong(host: Host) -> None:
    good = load(FOLDER / "wan21_t2v_14b.json")

    def broken(change: Any) -> str:
        workflow = copy.deepcopy(good)
        change(workflow)
        return "\n".join(problems(workflow, host.info))

    def node(workflow: dict[str, Any], kind: str) -> dict[str, Any]:
        return next(node for node in workflow["nodes"] if node["type"] == kind)

    assert "the host has no such node" in broken(lambda w: node(w, "KSampler").update(type="KSamplerOfOld"))
    assert "not among the host's choices" in broken(
        lambda w: node(w, "KSampler")["widgets_values"].__setitem__(4, "uler")
    )
    assert "outside" in broken(lambda w: node(w, "KSampler")["widgets_values"].__setitem__(2, -3))
    assert "out of order" in broken(lambda w: node(w, "ApplyDraftAttention")["widgets_values"].insert(0, True))
    assert "is not connected" in broken(lambda w: node(w, "VAEDecode")["inputs"][1].update(link=None))
    assert "takes VAE to an input" in broken(lambda w: w["links"].__setitem__(0, [1, 4, 0, 5, 0, "VAE"]))
    assert "no input 'strength'" in broken(
        lambda w: node(w, "VAEDecode")["inputs"].append({"name": "strength", "type": "FLOAT", "link": None})
    )


@pytest.mark.comfyui
def test_a_graph_cannot_name_what_the_host_lacks(host: Host) -> None:
    graph = Graph("test", host.info)
    loader = graph.add("VAELoader", 0, vae_name="a.safetensors")
    with pytest.raises(KeyError, match="no input"):
        graph.add("KSampler", 0, stepps=3)
    with pytest.raises(KeyError):
        graph.add("NoSuchNode", 0)
    with pytest.raises(ValueError, match="does not fit"):
        graph.add("KSampler", 0, model=loader.out())


@pytest.mark.comfyui
def test_help_pages_and_translations_are_served(host: Host) -> None:
    with urllib.request.urlopen(f"{host.server.url}/extensions/draftattention/docs/SparsityScheduler.md") as answer:
        assert answer.read().decode().startswith("# Sparsity Scheduler")
    texts = host.server.get("/api/i18n")
    assert texts["zh"]["nodeDefs"]["ApplyDraftAttention"]["inputs"]["sparsity"]["tooltip"]
