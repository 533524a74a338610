"""Compare shows both clips in one picture, parted by a line to drag, playing in step."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tests.browser.canvas import Canvas

if TYPE_CHECKING:
    from playwright.sync_api import Route

RED, BLUE, BLACK = [200, 40, 40], [40, 40, 120], [0, 0, 0]
PLACE = """(id) => {
    const { element } = app.graph.getNodeById(id).widgets.find((one) => one.name === 'compare_slider')
    const canvas = element.querySelector('canvas')
    const [wide, high] = [canvas.width, canvas.height]
    const scale = Math.min(wide / 16, high / 8)
    return { left: (wide - 16 * scale) / 2, top: (high - 8 * scale) / 2, wide: 16 * scale, high: 8 * scale }
}"""
# Colour at a place of the picture, each coordinate 0 to 1.
PIXEL = """([id, box, x, y]) => {
    const { element } = app.graph.getNodeById(id).widgets.find((one) => one.name === 'compare_slider')
    const pen = element.querySelector('canvas').getContext('2d')
    const place = [box.left + x * box.wide, box.top + y * box.high].map(Math.floor)
    return [...pen.getImageData(...place, 1, 1).data].slice(0, 3)
}"""
READY = """(id) => {
    const element = app.graph.getNodeById(id).widgets.find((one) => one.name === 'compare_slider')?.element
    const canvas = element?.querySelector('canvas')
    const pen = canvas?.clientHeight > 60 && canvas.getContext('2d')
    return pen && pen.getImageData(canvas.width / 2 - 9, canvas.height / 2, 1, 1).data[3]
}"""


def sheet(colours: list[list[int]]) -> bytes:
    """Frames of one colour each, 8 x 16, side by side, as a PNG."""
    frames = np.concatenate([np.full((8, 16, 3), colour, np.uint8) for colour in colours], 1)
    written = io.BytesIO()
    Image.fromarray(frames).save(written, "PNG")
    return written.getvalue()


def shown(canvas: Canvas) -> int:
    """A Compare node that was sent a red clip, which turns black at its last frame, and a blue one."""
    node = canvas.add("DraftAttentionCompare")
    for name, frames in (("red.png", [RED] * 3 + [BLACK]), ("blue.png", [BLUE] * 4)):
        body = sheet(frames)
        canvas.page.route(f"**/view?*{name}*", partial(answer, body))
    told = {"frames": 4, "columns": 4, "width": 16, "height": 8, "every": 1, "shrunk": False, "type": "temp"}
    clips = [{**told, "filename": name, "label": ""} for name in ("red.png", "blue.png")]
    send(canvas, node, clips)
    canvas.until(READY, node)
    canvas.page.unroute_all()
    return node


def answer(body: bytes, route: Route) -> None:
    route.fulfill(body=body, content_type="image/png")


def send(canvas: Canvas, node: int, clips: Any) -> None:
    canvas.js(
        """([node, clips]) => app.api.dispatchEvent(new CustomEvent('executed', {
            detail: { node: String(node), display_node: String(node), output: { draftattention_clips: clips } },
        }))""",
        [node, clips],
    )


def colours(canvas: Canvas, node: int, *places: float) -> list[list[int]]:
    box = canvas.js(PLACE, node)
    return [canvas.js(PIXEL, [node, box, x, 0.75]) for x in places]


def test_a_line_to_drag_parts_the_reference_from_the_clip(canvas: Canvas) -> None:
    node = shown(canvas)
    assert colours(canvas, node, 0.25, 0.45, 0.55, 0.75) == [RED, RED, BLUE, BLUE]
    line = canvas.page.get_by_role("slider", name="Drag to part")
    box = line.bounding_box()
    assert box is not None
    before = canvas.js("(id) => [...app.graph.getNodeById(id).pos]", node)
    middle = box["y"] + box["height"] / 2
    canvas.page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    canvas.page.mouse.down()
    canvas.page.mouse.move(box["x"] + box["width"] * 0.35, middle, steps=3)
    canvas.page.mouse.up()
    assert colours(canvas, node, 0.1, 0.45, 0.75) == [RED, BLUE, BLUE]
    assert canvas.js("(id) => [...app.graph.getNodeById(id).pos]", node) == before, "the node stays where it is"
    for _ in range(20):
        canvas.page.keyboard.press("ArrowRight")
    assert colours(canvas, node, 0.1, 0.45, 0.6) == [RED] * 3


def test_both_clips_play_in_step_and_nothing_runs_while_they_rest(canvas: Canvas) -> None:
    node = shown(canvas)
    assert "3 of 4" in canvas.text(node, "compare_slider"), "a clip begins in its middle"
    canvas.page.get_by_role("slider", name="Drag to part").focus()
    canvas.page.keyboard.press(".")
    assert "4 of 4" in canvas.text(node, "compare_slider")
    assert colours(canvas, node, 0.25, 0.75) == [BLACK, BLUE]
    frames = """async (id) => {
        const { element } = app.graph.getNodeById(id).widgets.find((one) => one.name === 'compare_slider')
        const seen = new Set()
        const until = performance.now() + 700
        while (performance.now() < until) {
            seen.add(element.innerText.match(/(\\d) of 4/)[1])
            await new Promise(requestAnimationFrame)
        }
        return [...seen].sort()
    }"""
    assert canvas.js(frames, node) == ["4"]
    canvas.page.get_by_role("button", name="Play", exact=True).click()
    assert canvas.js(frames, node) == ["1", "2", "3", "4"]
    canvas.page.get_by_role("button", name="Pause", exact=True).click()
    assert len(canvas.js(frames, node)) == 1


def test_the_difference_is_shown_four_times_as_strong(canvas: Canvas) -> None:
    node = shown(canvas)
    canvas.page.get_by_role("button", name="difference x 4").click()
    assert colours(canvas, node, 0.25, 0.75) == [[255, 0, 255]] * 2


def test_a_picture_that_is_gone_is_told(canvas: Canvas) -> None:
    node = canvas.add("DraftAttentionCompare")
    gone = {"filename": "gone.png", "frames": 1, "columns": 1, "width": 4, "height": 4, "every": 1, "shrunk": False}
    send(canvas, node, [gone])
    assert canvas.widget(node, "compare_slider") is None, "half a comparison is none"
    send(canvas, node, [gone, gone])
    canvas.until("(id) => app.graph.getNodeById(id).widgets.some((one) => one.name === 'compare_slider')", node)
    canvas.until(
        """(id) => app.graph.getNodeById(id).widgets.find((one) => one.name === 'compare_slider')
            .element.innerText.includes('no longer on the server')""",
        node,
    )


def test_a_run_sends_both_clips(canvas: Canvas) -> None:
    ids = canvas.load_demo()
    compare = canvas.add("DraftAttentionCompare", (500, 500))
    for entry in ("reference", "clip"):
        canvas.connect(ids["KSampler"], "LATENT", compare, entry)
    assert canvas.run() == "execution_success"
    canvas.until(
        """(id) => app.graph.getNodeById(id).widgets.find((one) => one.name === 'compare_slider')
            ?.element.querySelector('canvas').getAttribute('aria-valuenow') === '50'""",
        compare,
    )
    assert "2 of 3" in canvas.text(compare, "compare_slider")
