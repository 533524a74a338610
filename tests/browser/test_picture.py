"""Report and Profile show their picture in the colours of the theme, once, as wide as the node."""

from __future__ import annotations

import io
import urllib.request
from urllib.parse import urljoin

import numpy as np
import pytest
from PIL import Image

from draftattention.draftattn_core.views.charts.look import DARK, LIGHT
from tests.browser.canvas import Canvas

REPORT, SCHEDULER = "DraftAttentionReport", "SparsityScheduler"
SHOWN = """([id, not]) => {
    const { element } = app.graph.getNodeById(id).widgets.find((one) => one.name === 'picture') ?? {}
    const image = element?.querySelector('img')
    return image?.complete && image.naturalWidth && image.getClientRects().length && image.src !== not && image.src
}"""


def picture(canvas: Canvas, node: int, other: str = "") -> tuple[str, Image.Image]:
    """Address and contents of the picture in sight, once it is another one."""
    canvas.until(SHOWN, [node, other], timeout=30_000)
    address = canvas.js(SHOWN, [node, other])
    with urllib.request.urlopen(urljoin(canvas.server.url, address), timeout=30) as answer:
        return address, Image.open(io.BytesIO(answer.read())).convert("RGB")


def ground(drawn: Image.Image) -> tuple[int, ...]:
    colours, counts = np.unique(np.asarray(drawn).reshape(-1, 3), axis=0, return_counts=True)
    return tuple(colours[counts.argmax()].tolist())


def run(canvas: Canvas) -> tuple[int, int]:
    """Report and scheduler of a finished run."""
    ids = canvas.load_demo()
    report, scheduler = canvas.add(REPORT, (0, 500)), canvas.add(SCHEDULER, (600, 500))
    canvas.connect(ids["ApplyDraftAttention"], "report", report, "report")
    canvas.connect(ids["KSampler"], "LATENT", report, "after")
    assert canvas.run() == "execution_success"
    return report, scheduler


def test_the_picture_of_the_theme_is_shown_and_changes_with_it(canvas: Canvas) -> None:
    report, _ = run(canvas)
    palette = canvas.js("() => app.extensionManager.setting.get('Comfy.ColorPalette')")
    try:
        canvas.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
        address, drawn = picture(canvas, report)
        assert ground(drawn) == DARK.paper
        canvas.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
        address, drawn = picture(canvas, report, address)
        assert ground(drawn) == LIGHT.paper
        canvas.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
        assert ground(picture(canvas, report, address)[1]) == DARK.paper
    finally:
        canvas.js("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)


def test_it_is_shown_once_and_fits_the_node_and_a_click_opens_it(canvas: Canvas) -> None:
    report, scheduler = run(canvas)
    address, drawn = picture(canvas, report)
    canvas.page.wait_for_timeout(1000)
    for node in (report, scheduler):
        assert not canvas.js("(id) => app.graph.getNodeById(id).imgs?.length", node), "no second one by the host"
    box, frame, size = canvas.js(
        """(id) => {
            const node = app.graph.getNodeById(id)
            const { element } = node.widgets.find((one) => one.name === 'picture')
            const image = element.querySelector('img').getBoundingClientRect()
            const outer = element.getBoundingClientRect()
            return [[image.width, image.height], [outer.width, outer.height], [...node.size]]
        }""",
        report,
    )
    assert size[0] - 60 < box[0] <= size[0]
    assert box[1] == pytest.approx(box[0] * drawn.height / drawn.width, abs=2), "not squeezed"
    assert box[1] <= frame[1] + 2, "and whole"
    with canvas.page.expect_popup() as opened:
        canvas.page.locator(".draftattention-picture a").evaluate("(link) => link.click()")
    assert opened.value.url != address, "it has all its words"
    opened.value.close()


def test_words_are_written_on_it_inside_its_frame(canvas: Canvas) -> None:
    report, _ = run(canvas)
    picture(canvas, report)
    words = canvas.js(
        """(id) => {
            const { element } = app.graph.getNodeById(id).widgets.find((one) => one.name === 'picture')
            const frame = element.querySelector('a').getBoundingClientRect()
            return [...element.querySelectorAll('span')].map((one) => {
                const box = one.getBoundingClientRect()
                const inside = box.left >= frame.left - 2 && box.right <= frame.right + 2 && box.top >= frame.top - 2
                return [one.textContent, inside && box.bottom <= frame.bottom + 2, getComputedStyle(one).color]
            })
        }""",
        report,
    )
    assert {"Density by step and layer", "density", "step (noisy to clean)"} < {text for text, _, _ in words}
    assert [text for text, inside, _ in words if not inside] == []
    assert len({colour for _, _, colour in words}) > 1, "lesser words are fainter"


def test_a_picture_is_there_again_when_its_tab_comes_back_and_is_not_saved(canvas: Canvas) -> None:
    report, _ = run(canvas)
    address, _ = picture(canvas, report)
    saved = canvas.js("(id) => JSON.stringify(app.graph.getNodeById(id).serialize())", report)
    assert "draftattention_picture" not in saved
    canvas.command("Comfy.NewBlankWorkflow")
    canvas.until("(kind) => !app.graph.nodes.some((node) => node.type === kind)", REPORT)
    canvas.command("Workspace.PreviousOpenedWorkflow")
    canvas.until("(kind) => app.graph.nodes.some((node) => node.type === kind)", REPORT)
    assert picture(canvas, report)[0] == address


def test_a_picture_that_is_gone_is_told(canvas: Canvas) -> None:
    report = canvas.add(REPORT)
    told = {"light": {"filename": "gone.png"}, "dark": {"filename": "gone.png"}, "width": 400, "height": 200}
    canvas.js(
        """([node, told]) => app.api.dispatchEvent(new CustomEvent('executed', {
            detail: { node: String(node), display_node: String(node), output: { draftattention_picture: [told] } },
        }))""",
        [report, told],
    )
    canvas.until(
        """(id) => app.graph.getNodeById(id).widgets.find((one) => one.name === 'picture')
            ?.element.innerText.includes('no longer on the server')""",
        report,
    )
