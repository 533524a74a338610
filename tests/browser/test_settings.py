"""What users may choose for the whole pack: it has sensible defaults, and a change shows at once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.canvas import Canvas
from tests.browser.test_compare import shown
from tests.browser.test_live_map import SEND, recorded
from tests.browser.test_runs import BADGES, told
from tests.browser.test_runs import SEND as SEND_RUN

PREFIX = "DraftAttention.Display."


def choose(canvas: Canvas, name: str, value: Any) -> None:
    canvas.js("([id, value]) => app.extensionManager.setting.set(id, value)", [PREFIX + name, value])


def test_the_map_and_the_badges_are_shown_unless_the_user_wants_neither(canvas: Canvas) -> None:
    node = canvas.add("ApplyDraftAttention")
    canvas.js(SEND, recorded(canvas, node))
    canvas.js(SEND_RUN, told(canvas, node, speed_up=2.14))
    assert "4 steps in" in canvas.text(node, "live_map") and "2.1x" in canvas.js(BADGES, node)
    high = canvas.js("(id) => app.graph.getNodeById(id).size[1]", node)
    try:
        for name in ("LiveMap", "Badges"):
            choose(canvas, name, False)
        canvas.until("() => !document.querySelector('.draftattention-map canvas')")
        assert canvas.widget(node, "live_map") is None and "2.1x" not in canvas.js(BADGES, node)
        assert canvas.js("(id) => app.graph.getNodeById(id).size[1]", node) < high - 100, "no gap is left"
        canvas.js(SEND, [{**one, "run": 6.0} for one in recorded(canvas, node)])
        assert canvas.widget(node, "live_map") is None
    finally:
        for name in ("LiveMap", "Badges"):
            choose(canvas, name, True)
    assert "4 steps in" in canvas.text(node, "live_map"), "what went on meanwhile was kept"
    assert "2.1x" in canvas.js(BADGES, node)


@pytest.mark.any_renderer("frames follow the page's clock")
def test_clips_play_as_fast_as_the_user_wants(canvas: Canvas) -> None:
    node = shown(canvas)
    frames = """async (id) => {
        const { element } = app.graph.getNodeById(id).widgets.find((one) => one.name === 'compare_slider')
        const frame = () => element.innerText.match(/(\\d) of 4/)[1]
        let [changes, last] = [0, frame()]
        const until = performance.now() + 1500
        while (performance.now() < until) {
            await new Promise(requestAnimationFrame)
            if (frame() !== last) [changes, last] = [changes + 1, frame()]
        }
        return changes
    }"""
    try:
        choose(canvas, "ClipRate", 2)
        # Not with the mouse: after test_new_user the host's front end leaves the view aside, below its own bar.
        canvas.page.get_by_role("button", name="Play", exact=True).dispatch_event("click")
        assert 1 <= canvas.js(frames, node) <= 4, "about 3 in a second and a half"
    finally:
        choose(canvas, "ClipRate", 16)
    assert canvas.js(frames, node) > 8, "from the next frame on"
