"""The map of steps and layers under DraftAttention Sparse fills in while sampling and stays in the workflow."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.canvas import Canvas

SEND = """(messages) => {
    for (const detail of messages) app.api.dispatchEvent(new CustomEvent('draftattention.live_map', { detail }))
}"""
# Colours in the middle of each cell, as "r,g,b"; empty where nothing is drawn.
CELLS = """async ([id, steps, layers]) => {
    for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
    const { element } = app.graph.getNodeById(id).widgets.find((one) => one.name === 'live_map')
    const canvas = element.querySelector('canvas')
    const pen = canvas.getContext('2d')
    const at = (step, layer) => {
        const [x, y] = [(step + 0.5) * canvas.width / steps, (layer + 0.5) * canvas.height / layers]
        const [r, g, b, a] = pen.getImageData(Math.floor(x), Math.floor(y), 1, 1).data
        return a ? `${r},${g},${b}` : ''
    }
    return [...Array(steps)].map((_, step) => [...Array(layers)].map((_, layer) => at(step, layer)))
}"""
DRAWN = """(id) => {
    const element = app.graph.getNodeById(id)?.widgets?.find((one) => one.name === 'live_map')?.element
    return element?.querySelector('canvas').clientHeight > 50 && element.querySelector('canvas').height > 50
}"""
SCHEDULE, MASK, NOT_SEEN = -2, -8, -1


def recorded(canvas: Canvas, node: int) -> list[dict[str, Any]]:
    """A run of four steps and three layers: a dense start, two sparse steps, a skipped one; and its end."""
    run = {"node": str(node), "workflow": canvas.js("() => app.graph.id"), "run": 5.0, "steps": 4, "all_layers": 3}
    rows = [[SCHEDULE] * 3, [10, 80, MASK], [10, 80, NOT_SEEN], []]
    outcomes = ["computed", "computed", "computed", "forecast"]
    told = [
        {**run, "step": step, "outcome": outcome, "seconds": 2.0 * (step + 1), "layers": row}
        for step, (outcome, row) in enumerate(zip(outcomes, rows, strict=True))
    ]
    return [*told, {**run, "outcome": "done", "seconds": 8.0}]


def test_the_map_fills_in_says_the_time_and_stays_through_a_reload(canvas: Canvas) -> None:
    node = canvas.add("ApplyDraftAttention")
    assert canvas.widget(node, "live_map") is None, "nothing to show before a run"
    messages = recorded(canvas, node)

    canvas.js(SEND, messages[:2])
    canvas.until(DRAWN, node)
    half = canvas.js(CELLS, [node, 4, 3])
    text = canvas.text(node, "live_map")
    assert "Step 2 of 4, 2.0 s per step, 4.0 s left" in text
    assert (
        "dense: schedule" in text
        and "dense: mask" in text
        and "sparse, density 10-80%" in text
        and "skipped" not in text
    )
    (dense, *_), (sparse, fuller, mask) = half[:2]
    assert half[0] == [dense] * 3 and half[2:] == [[""] * 3] * 2
    assert len({dense, sparse, fuller, mask, ""}) == 5

    canvas.js(SEND, [{**messages[2], "workflow": "another"}])
    assert canvas.js(CELLS, [node, 4, 3]) == half, "a run of another workflow"
    canvas.js(SEND, messages[2:])
    whole = canvas.js(CELLS, [node, 4, 3])
    assert whole[:2] == half[:2] and whole[2] == [sparse, fuller, ""]
    skipped = whole[3][0]
    assert whole[3] == [skipped] * 3 and skipped not in {"", dense, sparse, fuller, mask}
    text = canvas.text(node, "live_map")
    assert "4 steps in 8.0 s, 2.0 s per step" in text and "skipped" in text and "left" not in text

    canvas.page.wait_for_timeout(1500)  # The front end writes down what is open after a while.
    canvas.reload()
    canvas.until(DRAWN, node, timeout=30_000)
    assert canvas.js(CELLS, [node, 4, 3]) == whole
    assert canvas.text(node, "live_map") == text


@pytest.mark.any_renderer("what is kept are the node's properties, which know no renderer")
def test_what_a_node_keeps_is_bounded_and_a_map_of_nonsense_is_not_shown(canvas: Canvas) -> None:
    node = canvas.add("ApplyDraftAttention")
    one = {**recorded(canvas, node)[1], "steps": 5000, "layers": [50] * 4000, "all_layers": 4000}
    canvas.js(SEND, [{**one, "step": step} for step in range(150)])
    text = canvas.text(node, "live_map")
    assert "Step 150 of 5000" in text and "sparse, density 50%" in text, "one density is no range"
    size = canvas.js("(id) => JSON.stringify(app.graph.getNodeById(id).properties.draftattention_map).length", node)
    assert size < 60_000
    saved = canvas.js("() => app.graph.serialize()")
    saved["nodes"][0]["properties"]["draftattention_map"] = {"rows": "none"}
    canvas.clear()
    canvas.load(saved)
    assert canvas.widget(node, "live_map") is None


def test_a_real_run_fills_the_map(canvas: Canvas) -> None:
    node = canvas.load_demo()["ApplyDraftAttention"]
    assert canvas.run() == "execution_success"
    canvas.until("(id) => app.graph.getNodeById(id).properties.draftattention_map?.done", node, timeout=30_000)
    kept = canvas.js("(id) => app.graph.getNodeById(id).properties.draftattention_map", node)
    assert [row["step"] for row in kept["rows"]] == [0, 1] and kept["steps"] == 2
    assert all(len(row["cells"]) == kept["layers"] > 0 for row in kept["rows"])
    assert all(0 < cell < 100 for row in kept["rows"] for cell in row["cells"]), "every layer was sparse"
    assert "2 steps in" in canvas.text(node, "live_map")
