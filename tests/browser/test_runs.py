"""The sidebar's tab lists the server's runs and has the doctor; badges on Apply tell the last run in a word."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.canvas import Canvas
from tests.browser.test_routes import answer

TAB = "() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.draftattention')"
SEND = "(detail) => app.api.dispatchEvent(new CustomEvent('draftattention.run', { detail }))"
BADGES = """(id) => app.graph.getNodeById(id).badges
    .map((badge) => (typeof badge === 'function' ? badge() : badge).text).filter(Boolean)"""
DRAWN = """() => {
    const canvas = document.querySelector('.draftattention-runs details[open] canvas')
    if (!canvas?.clientHeight || canvas.height < 50) return false
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data
    return pixels.filter((one, index) => index % 4 === 3 && one).length > pixels.length / 8
}"""


def told(canvas: Canvas, node: int, **values: Any) -> dict[str, Any]:
    run = {"node": str(node), "workflow": canvas.js("() => app.graph.id"), "cancelled": None}
    return {**run, "speed_up": None, "dense": "", **values}


def percent(share: float) -> str:
    return f"{100 * share:.{1 if share < 0.1 else 0}f}"


def seen(canvas: Canvas, node: int) -> list[str]:
    """Which of the badges that this test knows are shown."""
    canvas.frames()
    if not canvas.nodes_2:
        return [text for text in canvas.js(BADGES, node) if text in ("2.1x", "dense: mask")]
    element = canvas.node_element(node)
    return [text for text in ("2.1x", "dense: mask") if element.get_by_text(text, exact=True).count()]


def test_badges_tell_the_last_run_and_stay_through_a_reload(canvas: Canvas) -> None:
    node = canvas.add("ApplyDraftAttention")
    preset = canvas.widget(node, "preset")
    assert seen(canvas, node) == []
    canvas.js(SEND, told(canvas, node, speed_up=2.14, dense="mask"))
    assert seen(canvas, node) == ["2.1x", "dense: mask"]
    canvas.js(SEND, {**told(canvas, node, dense="error"), "workflow": "another"})
    assert seen(canvas, node) == ["2.1x", "dense: mask"], "a run of another workflow"
    saved = canvas.js("() => app.graph.serialize()")
    canvas.js(SEND, told(canvas, node, speed_up=1.01))
    assert seen(canvas, node) == [], "no faster than runs differ by"
    canvas.clear()
    canvas.load(saved)
    assert seen(canvas, node) == ["2.1x", "dense: mask"]
    canvas.js(SEND, told(canvas, node, speed_up=2.14, cancelled="cancelled after step 1 of 9"))
    assert seen(canvas, node) == []
    assert canvas.widget(node, "preset") == preset


def test_the_tab_lists_runs_with_their_settings_and_picture_and_grows_while_it_is_open(canvas: Canvas) -> None:
    ids = canvas.load_demo(4)
    canvas.set(ids["ApplyDraftAttention"], preset="custom", sparsity=0.9, dense_start=0.3)
    assert canvas.run() == "execution_success"
    canvas.js(TAB)
    try:
        cards = canvas.page.locator(".draftattention-run")
        cards.first.wait_for()
        count = cards.count()
        text = cards.first.inner_text()
        assert "DraftAttention Sparse" in text and "4 steps" in text and "preset custom, sparsity 0.9" in text
        assert "% of the work" in text, "its dense steps tell attention's share of the time"
        run = answer(canvas, "/draftattention/runs")[1][0]
        assert 0 < run["density"] < run["work"] - 0.01, "a dense start and the rest of the model are work, too"
        assert f"density {percent(run['density'])}%" in text and f" {percent(run['work'])}% of the work" in text
        summary = cards.first.locator("summary")
        assert summary.get_attribute("aria-expanded") == "false"
        summary.click()
        canvas.until(DRAWN)
        assert summary.get_attribute("aria-expanded") == "true"
        assert "self-attention calls sparse" in cards.first.inner_text()
        ids = canvas.load_demo(2)
        assert canvas.run() == "execution_success"
        canvas.until("(count) => document.querySelectorAll('.draftattention-run').length === count", min(64, count + 1))
        assert "2 steps" in cards.first.inner_text()
        assert cards.nth(1).get_attribute("open") is not None, "what was unfolded stays so"
    finally:
        canvas.js(TAB)
    canvas.until("() => !document.querySelector('.draftattention-runs')")


def test_a_run_of_a_workflow_that_is_not_open_is_called_as_its_node_was(canvas: Canvas) -> None:
    ids = canvas.load_demo(2)
    canvas.js("([id, title]) => (app.graph.getNodeById(id).title = title)", [ids["ApplyDraftAttention"], "Fast one"])
    assert canvas.run() == "execution_success"
    canvas.clear()
    canvas.js(TAB)
    try:
        first = canvas.page.locator(".draftattention-run").first
        first.wait_for()
        assert first.locator("b").inner_text().endswith("Fast one")
    finally:
        canvas.js(TAB)


def test_the_doctor_answers_in_the_tab_with_its_values_in_one_column(canvas: Canvas) -> None:
    canvas.js(TAB)
    try:
        canvas.page.get_by_role("button", name="Check it").click()
        canvas.until(
            "() => document.querySelector('.draftattention-doctor').textContent.includes('Backends')", timeout=60_000
        )
        names = "[...document.querySelectorAll('.draftattention-doctor .draftattention-fact > span')]"
        ends = canvas.js(f"() => {names}.map((name) => name.getBoundingClientRect().right)")
        assert len(ends) > 4 and max(ends) - min(ends) < 0.5
        starts = """() => [...document.querySelectorAll('.draftattention-doctor .draftattention-indented')]
            .map((line) => getComputedStyle(line))
            .map(({ paddingLeft, textIndent }) => parseFloat(paddingLeft) + parseFloat(textIndent))"""
        assert canvas.js(starts).count(0) > 1, "lines that go on below are indented there"
        lines = canvas.js("() => document.querySelector('.draftattention-doctor').textContent").split("\n")
        assert any(line.startswith("Python   ") for line in lines), "what is copied has its columns too"
    finally:
        canvas.js(TAB)


@pytest.mark.any_cell("the server's answers: the page asks for nothing here")
def test_runs_that_are_not_known_are_not_found(canvas: Canvas) -> None:
    status, runs = answer(canvas, "/draftattention/runs")
    assert status == 200 and isinstance(runs, list) and len(runs) <= 64
    for path in ("999999999999", "9999999999999", "-1", "x", "..%2f..%2fpyproject.toml"):
        assert answer(canvas, f"/draftattention/runs/{path}")[0] == 404, path
