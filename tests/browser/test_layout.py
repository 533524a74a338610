"""Nodes of the demo stand beside each other after a run in both renderers; help pages are where they are looked for."""

from __future__ import annotations

import json

import pytest

from tests.browser.canvas import Canvas
from tools.comfyui.path import PACK_ROOT
from tools.workflows.browser import Box, boxes, load, overlapping, settle

DOCS = PACK_ROOT / "web" / "docs"


def test_boxes_overlap_where_they_share_a_place() -> None:
    one, beside, below = Box("a", 0, 0, 10, 10), Box("b", 10, 0, 20, 10), Box("c", 5, 9, 8, 20)
    assert overlapping([one, beside, below]) == [("a", "c")]


def test_the_demo_shows_a_picture_a_curve_and_a_report_and_still_nothing_overlaps(canvas: Canvas) -> None:
    workflow = json.loads((PACK_ROOT / "workflows" / "demo_tiny_wan.json").read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "EmptyHunyuanLatentVideo":
            node["widgets_values"][:3] = [192, 128, 9]
        elif node["type"] == "KSampler":
            node["widgets_values"][2] = 3
    load(canvas.page, workflow)
    assert canvas.run() == "execution_success"
    ids = canvas.js("() => Object.fromEntries(app.graph.nodes.map((node) => [node.type, Number(node.id)]))")
    assert "DraftAttention:" in canvas.text(ids["DraftAttentionReport"], "text")
    assert "PSNR" in canvas.text(ids["DraftAttentionCompare"], "text")
    canvas.until("() => document.querySelector('.draftattention-clips canvas')?.width > 0")
    assert canvas.text(ids["SparsityScheduler"], "curve_editor")
    settle(canvas.page)
    assert overlapping(boxes(canvas.page, canvas.nodes_2)) == []
    for node, above, below in (
        ("ApplyDraftAttention", "verdict", "live_map"),
        ("DraftAttentionReport", "text", "picture"),
        ("DraftAttentionCompare", "text", "compare_slider"),
    ):
        gap = gap_between(canvas, ids[node], above, below)
        assert 2 <= gap <= 10, f"{gap} pixels between {above} and {below} of {node}"


def gap_between(canvas: Canvas, node: int, above: str, below: str) -> float:
    """What is free between two elements of a node that is brought into view, in pixels of the canvas at full size."""
    canvas.js(
        """(id) => {
            const node = app.graph.getNodeById(id)
            app.canvas.ds.scale = 1
            app.canvas.ds.offset = [200 - node.pos[0], 100 - node.pos[1]]
            app.canvas.setDirty(true, true)
        }""",
        node,
    )
    canvas.text(node, above)
    # The lower one comes with the picture that it shows.
    canvas.until(
        """([id, ...names]) => names.every((name) =>
            app.graph.getNodeById(id).widgets.find((one) => one.name === name)?.element)""",
        [node, above, below],
    )
    canvas.frames()
    return float(
        canvas.js(
            """([id, ...names]) => {
                const [above, below] = names.map((name) =>
                    app.graph.getNodeById(id).widgets.find((one) => one.name === name).element.getBoundingClientRect())
                return below.top - above.bottom
            }""",
            [node, above, below],
        )
    )


@pytest.mark.any_cell("files on the server, which every front end asks for alike")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_help_pages_and_their_pictures_are_where_the_front_end_looks(canvas: Canvas, language: str) -> None:
    page = "ApplyDraftAttention.md" if language == "en" else f"ApplyDraftAttention/{language}.md"
    answers = canvas.js(
        """async (paths) => Promise.all(paths.map(async (path) => {
            const answer = await fetch(`/extensions/draftattention/docs/${path}`)
            return [answer.status, answer.headers.get("content-type"), await answer.text()]
        }))""",
        [page, "pictures/ApplyDraftAttention.jpg"],
    )
    (status, kind, text), (found, shown, _) = answers
    # The front end takes HTML for a page of its own and shows no help.
    assert status == 200 and "html" not in kind and text == (DOCS / page).read_text(encoding="utf-8")
    assert found == 200 and shown == "image/jpeg"
