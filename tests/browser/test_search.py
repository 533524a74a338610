"""Who looks for what this pack does finds its main node first.

The front end ranks by names before aliases: for "draft" and "sparse" alone, other nodes' names come first.
"""

from __future__ import annotations

import pytest

from tests.browser.canvas import Canvas

MAIN = "Apply DraftAttention"
ROWS = "[...document.querySelectorAll('#results-list [role=option]')]"
FOUND = f"() => {ROWS}.map((row) => row.innerText.split('\\n')[0])"


@pytest.mark.parametrize("words", ["draft attention", "sparse attention", "speed up video"])
def test_the_main_node_is_found_first(canvas: Canvas, words: str) -> None:
    canvas.js("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    field = canvas.page.locator("[aria-controls=results-list]")
    field.fill(words)
    canvas.page.wait_for_timeout(400)  # results follow the typing after a pause
    canvas.until(f"() => ({FOUND})().includes('{MAIN}')")
    found = canvas.js(FOUND)
    canvas.page.keyboard.press("Escape")
    field.wait_for(state="detached")
    assert found[0] == MAIN, found[:8]
