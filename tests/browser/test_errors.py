"""What the pack's scripts complain about fails the test in which they do."""

from __future__ import annotations

import pytest

from tests.browser.canvas import PACK_NAME, Canvas


@pytest.mark.any_renderer("the console is the page's")
def test_errors_of_the_pack_are_noticed_and_others_are_not(canvas: Canvas) -> None:
    canvas.js("() => console.error('another pack is to blame')")
    canvas.js("() => void fetch('/no/such/place')")
    canvas.page.wait_for_timeout(200)
    assert canvas.errors == []
    script = f"/extensions/{PACK_NAME}/words.js"
    planted = (
        "() => console.error('DraftAttention: something is wrong')",
        f"() => void fetch('/{PACK_NAME}/runs/999999999999')",
        f"() => void import('{script}').then(({{ say }}) => say(null, null))",
        f"() => void import('{script}').then(({{ say }}) => setTimeout(() => say('clip_of', null)))",
    )
    for plant in planted:
        canvas.js(plant)
        for _ in range(20):
            canvas.page.wait_for_timeout(50)
            if canvas.errors:
                break
        assert canvas.errors, plant
        canvas.errors.clear()
