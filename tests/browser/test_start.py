"""The front end with the pack in it: it starts, its templates open, the tiny model runs."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from tests.browser.canvas import FROM_ARCHIVE, PACK_NAME, Canvas
from tools.comfyui.path import PACK_ROOT
from tools.workflows.browser import boxes, load, overlapping

WORKFLOWS = PACK_ROOT / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def test_the_page_draws_nodes_in_the_renderer_of_its_cell(canvas: Canvas) -> None:
    node = canvas.add("ApplyDraftAttention")
    canvas.until("() => LiteGraph.vueNodesMode !== undefined")
    assert canvas.js("() => LiteGraph.vueNodesMode") == canvas.nodes_2
    if canvas.nodes_2:
        canvas.node_element(node).wait_for()


def fetched(canvas: Canvas, pack: str, name: str) -> list[Any]:
    """A template as the front end asks for it: the statuses of its picture and its graph, and the graph."""
    answers: list[Any] = canvas.js(
        """async ([pack, name]) => {
            const base = `/api/workflow_templates/${pack}/${name}`
            const [picture, graph] = [await fetch(`${base}.jpg`), await fetch(`${base}.json`)]
            return [picture.status, graph.status, graph.ok && await graph.json()]
        }""",
        [pack, name],
    )
    return answers


def test_every_template_of_a_clone_opens_with_all_its_nodes_and_none_overlaps(canvas: Canvas) -> None:
    listed = canvas.js("() => fetch('/api/workflow_templates').then((answer) => answer.json())")
    assert sorted(listed[PACK_NAME]) == NAMES
    for name in NAMES:
        picture, status, graph = fetched(canvas, PACK_NAME, name)
        assert (picture, status) == (200, 200), name
        assert load(canvas.page, graph) == [], name
        assert canvas.js("() => app.graph.nodes.length") == len(graph["nodes"]), name
        assert overlapping(boxes(canvas.page, canvas.nodes_2)) == [], name


def test_the_packed_archive_has_the_same_templates_and_they_open(canvas: Canvas) -> None:
    if importlib.util.find_spec("comfy_cli") is None:
        pytest.skip("comfy-cli is not installed")
    listed = canvas.js("() => fetch('/api/workflow_templates').then((answer) => answer.json())")
    assert sorted(listed[FROM_ARCHIVE]) == NAMES
    for name in NAMES:
        assert fetched(canvas, FROM_ARCHIVE, name) == [
            200,
            200,
            json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8")),
        ]
    assert load(canvas.page, fetched(canvas, FROM_ARCHIVE, NAMES[0])[2]) == []


def test_the_demo_runs_from_the_browser(canvas: Canvas) -> None:
    canvas.load_demo()
    assert canvas.run() == "execution_success"
