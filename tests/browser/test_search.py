"""Who looks for what this pack does finds its main node first, and by one word alone among the first ten.

The front end ranks by the beginnings of names, then by whole words in names, then by aliases: for "draft" the pack's
other nodes come first, whose names begin with it.
"""

from __future__ import annotations

import pytest

from tests.browser.canvas import Canvas

MAIN = "Apply DraftAttention"
ROWS = "[...document.querySelectorAll('#results-list [role=option]')]"
FOUND = f"() => {ROWS}.map((row) => row.innerText.split('\\n')[0])"


@pytest.mark.parametrize(
    ("words", "places"),
    [("draft attention", 1), ("sparse attention", 1), ("speed up video", 1), ("draft", 10), ("sparse", 10)],
)
def test_the_main_node_is_found_at_once(canvas: Canvas, words: str, places: int) -> None:
    canvas.js("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    field = canvas.page.locator("[aria-controls=results-list]")
    field.fill(words)
    canvas.page.wait_for_timeout(400)  # results follow the typing after a pause
    canvas.until(f"() => ({FOUND})().includes('{MAIN}')")
    found = canvas.js(FOUND)
    canvas.page.keyboard.press("Escape")
    field.wait_for(state="detached")
    assert MAIN in found[:places], found[:8]
