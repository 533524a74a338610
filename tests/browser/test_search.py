"""Who looks for what this pack does finds its main node first, and by one word alone among the first three.

The front end ranks by the beginnings of ids and names, the shortest first, then by whole words in them; what only an
alias says comes last, after the nodes that many use. For "draft" the pack's other nodes compete, whose ids begin with
it; for "sparse" those of the host's nodes whose aliases look like it.
"""

from __future__ import annotations

import pytest

from tests.browser.canvas import Canvas

FIELD = "[aria-controls=results-list]"
ROWS = "[...document.querySelectorAll('#results-list [role=option]')]"
FOUND = f"() => {ROWS}.map((row) => row.innerText.split('\\n')[0])"
CHANGED = f"(before) => {{ const now = ({FOUND})(); return now.length && now.join() !== before.join() }}"
# Fetched when the page has nothing better to do; until then the ranks are others.
COUNTED = """() => {
    const { $pinia } = document.querySelector('#vue-app').__vue_app__.config.globalProperties
    return $pinia._s.get('nodeFrequency')?.isLoaded
}"""


def search(canvas: Canvas, words: str) -> list[str]:
    """Type into the search that is open; returns the names of the nodes that are found, best first."""
    field = canvas.page.locator(FIELD)
    field.wait_for()
    before = canvas.js(FOUND)
    field.fill(words)
    # Results follow the typing after a pause.
    canvas.until(CHANGED, before)
    return list(canvas.js(FOUND))


@pytest.mark.parametrize(
    ("words", "places"),
    [("draft attention", 1), ("sparse attention", 1), ("speed up video", 1), ("draft", 3), ("sparse", 3)],
)
def test_the_main_node_is_found_at_once(canvas: Canvas, words: str, places: int) -> None:
    main = canvas.js("() => LiteGraph.registered_node_types.ApplyDraftAttention.title")
    canvas.until(COUNTED, timeout=60_000)
    canvas.command("Workspace.SearchBox.Toggle")
    found = search(canvas, words)
    canvas.page.keyboard.press("Escape")
    canvas.page.locator(FIELD).wait_for(state="detached")
    assert main in found[:places], found[:12]
