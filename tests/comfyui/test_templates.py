"""The pack's templates reach the browser: ComfyUI serves each with its picture, from a clone and from the archive.

ComfyUI lists the templates of every folder it takes for one, but serves the files of the first such folder alone.
"""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.published import clone_into, tracked_files, unpacked_archive_into
from tools.comfyui.path import NOT_FOUND, ComfyUIInstall, find_all_comfyui
from tools.comfyui.server import ComfyUIServer

# The names in ComfyUI's app/custom_node_manager.py.
TEMPLATE_FOLDERS = {"example_workflows", "example", "examples", "workflow", "workflows"}
INSTALLS = find_all_comfyui()
# Nodes that the front end has without the server.
OF_FRONT_END = {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"}
FROM_CLONE, FROM_ARCHIVE, WITH_EXAMPLES = "ComfyUI-DraftAttention-0.1", "from_archive", "with_examples"


def test_one_folder_is_taken_for_templates() -> None:
    assert {name.partition("/")[0] for name in tracked_files()} & TEMPLATE_FOLDERS == {"workflows"}


@pytest.fixture(scope="module", params=INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUIServer]:
    """A server with the pack three times: as cloned, as unpacked, and as cloned when there was a folder `examples`."""
    install: ComfyUIInstall | None = request.param
    if install is None:
        pytest.skip(NOT_FOUND)
    base = tmp_path_factory.mktemp("packs")
    packs = base / "custom_nodes"
    clone_into(packs / FROM_CLONE)
    unpacked_archive_into(packs / FROM_ARCHIVE, clone_into(base / "to_pack"), base)
    shutil.copytree(packs / FROM_ARCHIVE, packs / WITH_EXAMPLES)
    (packs / WITH_EXAMPLES / "examples").mkdir()
    (packs / WITH_EXAMPLES / "examples" / "diffusers.py").touch()
    paths = base / "paths.yaml"
    paths.write_text(json.dumps({"packs": {"base_path": str(base), "custom_nodes": "custom_nodes"}}), encoding="utf-8")
    with ComfyUIServer(install, options=["--extra-model-paths-config", str(paths)]) as running:
        yield running


def get(server: ComfyUIServer, pack: str, file: str) -> bytes:
    """A template's file as the browser asks for it; empty if the server has none."""
    url = f"{server.url}/api/workflow_templates/{urllib.parse.quote(pack)}/{file}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError:
        return b""


def templates(server: ComfyUIServer, pack: str) -> list[str]:
    listed: dict[str, Any] = server.get("/api/workflow_templates")
    return sorted(listed[pack])


@pytest.mark.comfyui
@pytest.mark.parametrize("pack", [FROM_CLONE, FROM_ARCHIVE])
def test_every_template_opens_with_all_its_nodes_and_has_its_picture(server: ComfyUIServer, pack: str) -> None:
    known = OF_FRONT_END | set(server.get("/object_info"))
    names = templates(server, pack)
    assert names == sorted(Path(name).stem for name in tracked_files() if name.count("/") == 1 and is_template(name))
    for name in names:
        workflow = json.loads(get(server, pack, f"{name}.json") or "{}")
        assert workflow.get("nodes"), name
        subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
        nodes = [node for graph in (workflow, *subgraphs) for node in graph["nodes"]]
        assert {node["type"] for node in nodes} <= known | {graph["id"] for graph in subgraphs}, name
        with Image.open(BytesIO(get(server, pack, f"{name}.jpg"))) as picture:
            assert picture.width > 0, name


def is_template(name: str) -> bool:
    return name.startswith("workflows/") and name.endswith(".json")


@pytest.mark.comfyui
def test_a_second_folder_that_is_taken_for_templates_would_hide_them_all(server: ComfyUIServer) -> None:
    names = templates(server, WITH_EXAMPLES)
    assert names == templates(server, FROM_CLONE)
    assert not any(get(server, WITH_EXAMPLES, f"{name}.{kind}") for name in names for kind in ("json", "jpg"))
