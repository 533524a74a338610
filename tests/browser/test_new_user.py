"""From an empty canvas to a finished sparse video with a report that can be read: search, menu and the Run button."""

from __future__ import annotations

import re

from tests.browser.canvas import SEEDS, Canvas
from tests.browser.test_insert import by_menu, wires
from tests.browser.test_search import FIELD, search

NEWEST = "(kind) => Number(app.graph.nodes.filter((node) => node.type === kind && !node.flags.ghost).at(-1)?.id ?? 0)"
APPEARS = """async ([selector, limit]) => {
    const end = performance.now() + limit
    while (!document.querySelector(selector)?.checkVisibility() && performance.now() < end)
        await new Promise((resolve) => setTimeout(resolve, 100))
    return !!document.querySelector(selector)
}"""
READABLE = """(id) => {
    const { element } = app.graph.getNodeById(id).widgets.find((one) => one.name === 'text')
    const shown = element.querySelector('pre')
    const { fontSize, color } = getComputedStyle(shown)
    const apart = color !== getComputedStyle(element).backgroundColor
    return [parseFloat(fontSize), apart, shown.clientHeight, shown.clientWidth]
}"""


def put(canvas: Canvas, words: str, kind: str, at: tuple[int, int]) -> int:
    """Double-click on the canvas, type, take the first that is found, and put it there."""
    for _ in range(5):  # a page that is late takes them for two clicks
        canvas.page.mouse.dblclick(*at)
        if canvas.js(APPEARS, [FIELD, 4000]):
            break
    search(canvas, words)
    canvas.page.keyboard.press("Enter")
    canvas.page.locator(FIELD).wait_for(state="detached")
    canvas.page.mouse.move(*at)
    canvas.page.mouse.click(*at)
    canvas.until(NEWEST, kind)
    return int(canvas.js(NEWEST, kind))


def test_from_an_empty_canvas_to_a_sparse_video_and_its_report(canvas: Canvas) -> None:
    loader = put(canvas, "load diffusion model", "UNETLoader", (250, 200))
    by_menu(canvas, loader)
    apply = int(canvas.js(NEWEST, "ApplyDraftAttention"))
    assert (loader, "model", apply) in wires(canvas)
    report = put(canvas, "draft attention report", "DraftAttentionReport", (300, 500))

    # What every workflow has besides, and the links that users draw.
    sampler, latent = canvas.add("KSampler", (1000, 100)), canvas.add("EmptyHunyuanLatentVideo", (700, 500))
    save = canvas.add("SaveLatent", (1000, 500))
    for entry, row in (("positive", 0), ("negative", 1)):
        canvas.connect(canvas.add("DraftAttentionDemoPrompt", (700, 700 + 120 * row)), "CONDITIONING", sampler, entry)
    canvas.connect(apply, "model", sampler, "model")
    canvas.connect(latent, "LATENT", sampler, "latent_image")
    canvas.connect(sampler, "LATENT", save, "samples")
    canvas.connect(apply, "report", report, "report")
    canvas.connect(sampler, "LATENT", report, "after")
    canvas.set(latent, width=192, height=128, length=9)
    canvas.set(sampler, steps=3, seed=next(SEEDS), sampler_name="euler", scheduler="simple")
    canvas.set(apply, min_tokens=0)

    canvas.page.get_by_test_id("queue-button").click()
    canvas.until("(id) => app.graph.getNodeById(id).properties.draftattention_map?.done", apply, timeout=60_000)
    canvas.until(
        """(id) => app.graph.getNodeById(id).widgets.find((one) => one.name === 'text')
            .element.innerText.includes('self-attention calls sparse')""",
        report,
        timeout=30_000,
    )
    text = canvas.text(report, "text")
    sparse, calls = map(int, re.findall(r"(\d+) of (\d+) self-attention calls sparse", text)[0])
    assert calls == 15 and sparse > 0, "three steps of five layers"
    assert "Executed density" in text and "{" not in text and "undefined" not in text
    size, told_apart, high, wide = canvas.js(READABLE, report)
    assert size >= 11 and told_apart and high > 100 and wide > 300
    assert canvas.text(apply, "verdict").startswith(text.split("\n")[0][:60])

    canvas.page.get_by_role("button", name="DraftAttention: runs and doctor").first.click()
    card = canvas.page.locator(".draftattention-run").first
    card.wait_for()
    assert "3 steps" in card.inner_text()
    canvas.page.get_by_role("button", name="DraftAttention: runs and doctor").first.click()
