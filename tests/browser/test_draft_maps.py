"""Preview: a click on a place shows what its block attends to; step, layer and head change without a run."""

from __future__ import annotations

import io
import math
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tests.browser.canvas import NOWHERE, Canvas

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Route

# Two frames of 4 x 8 tokens; blocks are 4 x 4: left and right half of each frame.
GRID = (2, 4, 8)
BLOCKS = np.array([[[[2 * frame + column // 4 for column in range(8)]] * 4] for frame in range(2)], "<u2")
SUM = """([id, x, y]) => {
    const { element } = app.graph.getNodeById(id).widgets.find((one) => one.name === 'draft_maps')
    const canvas = element.querySelector('canvas')
    const scale = Math.min(canvas.width / 8, canvas.height / 4)
    const left = (canvas.width - 8 * scale) / 2 + x * 8 * scale
    const top = (canvas.height - 4 * scale) / 2 + y * 4 * scale
    const [r, g, b] = canvas.getContext('2d').getImageData(Math.floor(left), Math.floor(top), 1, 1).data
    return r + g + b
}"""
SETTLED = """([id, text]) => {
    const element = app.graph.getNodeById(id).widgets?.find((one) => one.name === 'draft_maps')?.element
    return element?.innerText.includes(text) && element.querySelector('canvas').clientHeight > 60
}"""


def level(share: float) -> int:
    """As the server's `to_levels` writes a share of the row's largest."""
    return round(255 - 254 * math.log10(share) / -4)


def picture() -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.full((4, 16, 3), 120, np.uint8)).save(written, "PNG")
    return written.getvalue()


def shown(canvas: Canvas) -> int:
    """A Preview node with maps of step 1 (layers 0 and 5) and of step 4 (layer 5), each of two heads.

    In head 0 every block attends to itself as 1, to its right neighbour as 1/2 and to the others as 1/4, and computes
    itself and its neighbour. Head 1 attends to everything alike and computes everything.
    """
    own = np.full((4, 4), level(0.25), np.uint8)
    for block in range(4):
        own[block, block], own[block, (block + 1) % 4] = 255, level(0.5)
    kept = np.where(own > level(0.25), 255, 0).astype(np.uint8)
    even = np.full((4, 4), 255, np.uint8)
    files = {"blocks.bin": np.concatenate([BLOCKS.ravel(), BLOCKS.ravel()]).tobytes()}
    maps = []
    for step, layer in ((0, 0), (0, 5), (3, 5)):
        name = f"map{step}_{layer}.bin"
        files[name] = np.stack([own, even, kept, even]).tobytes()
        shape = {"heads": 2, "rows": [0, 1, 2, 3], "columns": 4, "merged": 1}
        maps.append({"step": step, "layer": layer, **shape, "file": {"filename": name}})
    for name, data in files.items():
        canvas.page.route(f"**/view?*{name}*", partial(answer, zlib.compress(data), "application/octet-stream"))
    canvas.page.route("**/view?*frames.png*", partial(answer, picture(), "image/png"))
    sheet = {"filename": "frames.png", "frames": 2, "columns": 2, "width": 8, "height": 4, "every": 1, "shrunk": False}
    node = canvas.add("DraftAttentionPreview")
    send(canvas, node, {"grid": GRID, "blocks": {"filename": "blocks.bin"}, "maps": maps, "sheet": sheet})
    canvas.until(SETTLED, [node, "% of the blocks are computed"])
    return node


def answer(body: bytes, kind: str, route: Route) -> None:
    route.fulfill(body=body, content_type=kind)


def send(canvas: Canvas, node: int, told: Any) -> None:
    canvas.js(
        """([node, told]) => app.api.dispatchEvent(new CustomEvent('executed', {
            detail: { node: String(node), display_node: String(node), output: { draftattention_maps: [told] } },
        }))""",
        [node, told],
    )


def slide(canvas: Canvas, name: str, value: int) -> None:
    canvas.page.get_by_role("slider", name=name, exact=True).fill(str(value))


def image(canvas: Canvas) -> Locator:
    return canvas.page.locator(".draftattention-maps canvas").first


def click(canvas: Canvas, x: float, y: float = 0.5) -> None:
    box = image(canvas).bounding_box()
    assert box is not None
    wide = min(box["width"], 2 * box["height"])
    left = box["x"] + (box["width"] - wide) / 2
    canvas.page.mouse.click(left + x * wide, box["y"] + box["height"] / 2 + (y - 0.5) * wide / 2)
    canvas.page.mouse.move(*NOWHERE)


def test_a_click_shows_what_that_block_attends_to(canvas: Canvas) -> None:
    node = shown(canvas)
    before = canvas.js("(id) => [...app.graph.getNodeById(id).pos]", node)
    slide(canvas, "frame", 0)
    click(canvas, 0.3)
    canvas.until(SETTLED, [node, "50% of the blocks are computed; they hold 75% of the draft"])
    left, right = (canvas.js(SUM, [node, x, 0.5]) for x in (0.2, 0.8))
    assert left > right + 20, "itself, then its neighbour"
    slide(canvas, "frame", 1)
    others = [canvas.js(SUM, [node, x, 0.5]) for x in (0.2, 0.8)]
    assert others[0] == others[1] < right - 20, "the blocks of the other frame"
    click(canvas, 0.8)
    canvas.until(SETTLED, [node, "75% of the draft"])
    assert canvas.js(SUM, [node, 0.8, 0.5]) == left, "a click in another frame takes the block there"
    slide(canvas, "frame", 0)
    assert [canvas.js(SUM, [node, x, 0.5]) for x in (0.2, 0.8)] == [right, others[0]], "block 3 is followed by block 0"
    assert canvas.js("(id) => [...app.graph.getNodeById(id).pos]", node) == before, "the node stays where it is"


def test_pointing_tells_the_share_and_whether_it_is_computed(canvas: Canvas) -> None:
    node = shown(canvas)
    slide(canvas, "frame", 0)
    click(canvas, 0.3)
    box = image(canvas).bounding_box()
    assert box is not None
    for frame, share, how in ((0, "50%", "computed exactly"), (1, "13%", "through its tail")):
        slide(canvas, "frame", frame)
        canvas.page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
        canvas.until(SETTLED, [node, f"{share} of the draft, {how}"])
        canvas.page.mouse.move(*NOWHERE)


def test_step_layer_and_head_change_without_a_run(canvas: Canvas) -> None:
    node = shown(canvas)
    slide(canvas, "head", 1)
    canvas.until(SETTLED, [node, "100% of the blocks are computed; they hold 100% of the draft"])
    slide(canvas, "head", 0)
    slide(canvas, "step", 1)
    canvas.until(SETTLED, [node, "Step 4, layer 0 was dense."])
    slide(canvas, "layer", 1)
    canvas.until(SETTLED, [node, "50% of the blocks are computed"])
    assert "was dense" not in canvas.text(node, "draft_maps")


def test_what_is_computed_is_bright_and_what_is_skipped_dark(canvas: Canvas) -> None:
    node = shown(canvas)
    slide(canvas, "frame", 0)
    click(canvas, 0.8)
    canvas.page.get_by_role("button", name="computed", exact=True).click()
    left, right = (canvas.js(SUM, [node, x, 0.5]) for x in (0.2, 0.8))
    assert right > 2 * left


def test_keys_move_the_place_and_the_frame(canvas: Canvas) -> None:
    node = shown(canvas)
    slide(canvas, "frame", 0)
    click(canvas, 0.45)
    canvas.until(SETTLED, [node, "75% of the draft"])
    bright = canvas.js(SUM, [node, 0.2, 0.5])
    image(canvas).focus()
    canvas.page.keyboard.press("ArrowRight")
    canvas.until(
        "([id, x, y, before]) => { const sum = " + SUM + "; return sum([id, x, y]) < before }", [node, 0.2, 0.5, bright]
    )
    canvas.page.keyboard.press(".")
    assert canvas.page.get_by_role("slider", name="frame", exact=True).input_value() == "1"


def test_before_a_run_the_node_says_what_it_needs_in_a_line(canvas: Canvas) -> None:
    node = canvas.add("DraftAttentionPreview")
    assert canvas.text(node, "draft_maps").strip().startswith("Connect DraftAttention Capture and run")
    height = "(id) => app.graph.getNodeById(id).widgets.find((one) => one.name === 'draft_maps').element.clientHeight"
    assert canvas.js(height, node) < 80
    assert not canvas.page.locator(".draftattention-maps canvas").first.is_visible()


def test_a_line_that_wraps_leaves_the_picture_its_room(canvas: Canvas) -> None:
    node = shown(canvas)
    canvas.js(
        "() => { document.querySelector('.draftattention-bar .draftattention-caption').textContent = 'x '.repeat(99) }"
    )
    canvas.frames()
    high, wide, lines = canvas.js(
        """(id) => {
            const box = app.graph.getNodeById(id).widgets.find((one) => one.name === 'draft_maps').element
            const caption = box.querySelector('.draftattention-bar .draftattention-caption')
            const [wide] = app.graph.getNodeById(id).size
            return [box.querySelector('canvas').clientHeight, wide, caption.clientHeight / 17]
        }""",
        node,
    )
    assert lines > 1.8 and high > 0.85 * (wide - 40) / 2


def test_a_run_that_was_not_sparse_and_files_that_are_gone_are_told(canvas: Canvas) -> None:
    node = shown(canvas)
    send(canvas, node, {"maps": []})
    canvas.until(
        SETTLED.replace(".clientHeight > 60", ".clientHeight === 0"), [node, "Nothing of the last run was sparse."]
    )
    canvas.page.unroute_all()
    one = {"step": 0, "layer": 0, "heads": 1, "rows": [0], "columns": 4, "merged": 1, "file": {"filename": "gone.bin"}}
    sheet = {"filename": "gone.png", "frames": 2, "columns": 2, "width": 8, "height": 4, "every": 1, "shrunk": False}
    send(canvas, node, {"grid": GRID, "blocks": {"filename": "gone.bin"}, "maps": [one], "sheet": sheet})
    canvas.until(SETTLED, [node, "no longer on the server"])


def test_a_run_fills_the_viewer_and_its_widgets_are_no_part_of_the_prompt(canvas: Canvas) -> None:
    ids = canvas.load_demo()
    capture, preview = canvas.add("DraftAttentionCapture", (0, 500)), canvas.add("DraftAttentionPreview", (400, 500))
    apply = ids["ApplyDraftAttention"]
    canvas.connect(apply, "model", capture, "model")
    canvas.connect(apply, "report", capture, "report")
    canvas.connect(capture, "model", ids["ModelSamplingSD3"], "model")
    canvas.connect(capture, "capture", preview, "capture")
    canvas.connect(ids["KSampler"], "LATENT", preview, "samples")
    assert canvas.run() == "execution_success"
    canvas.until(SETTLED, [preview, "% of the blocks are computed"], timeout=30_000)
    prompt = canvas.js("async () => (await app.graphToPrompt()).output")
    assert set(prompt[str(preview)]["inputs"]) == {"capture", "samples", "head", "time", "y", "x"}
