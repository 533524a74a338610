"""How the last run went stays under DraftAttention Sparse."""

from __future__ import annotations

from tests.browser.canvas import Canvas

VERDICT = "draftattention.verdict"
LEFT_AT_THE_END = """() => {
    window.leftAtTheEnd = null
    app.api.addEventListener('execution_success', () => {
        window.leftAtTheEnd = app.graph.nodes
            .flatMap((node) => node.widgets ?? []).filter((one) => one.name.startsWith('$$')).map((one) => one.value)
    }, { once: true })
}"""
SPARSE = "DraftAttention: 10 of 10 self-attention calls sparse"
HEARD = """(name) => {
    window.verdict = null
    app.api.addEventListener(name, ({ detail }) => { window.verdict = detail })
}"""

# The front end's own line under a node that runs, and a message of the pack's server.
SHOW_LINE = """([nodeId, text]) =>
    app.api.dispatchEvent(new CustomEvent('progress_text', { detail: { nodeId, text } }))"""
LINE_SHOWN = "(id) => app.graph.getNodeById(id).widgets.some((one) => one.name.startsWith('$$'))"
SEND = "([kind, detail]) => app.api.dispatchEvent(new CustomEvent(kind, { detail }))"


def verdict_of(canvas: Canvas, apply: int) -> str:
    return canvas.text(apply, "verdict").removesuffix("Copy").strip()


def settle(canvas: Canvas, apply: int, text: str) -> None:
    canvas.until(
        "([id, text]) => app.graph.getNodeById(id)?.widgets.some((one) => one.element?.innerText.includes(text))",
        [apply, text],
        timeout=60_000,
    )


def test_the_verdict_stays_through_a_reload_and_in_the_saved_workflow(canvas: Canvas) -> None:
    apply = canvas.load_demo()["ApplyDraftAttention"]
    assert verdict_of(canvas, apply) == "Last run: none yet."
    canvas.js(LEFT_AT_THE_END)
    assert canvas.run() == "execution_success"
    settle(canvas, apply, SPARSE)
    left = canvas.js("() => window.leftAtTheEnd")
    assert not any(text.startswith("DraftAttention:") for text in left), "decoding goes on: it is said once already"
    canvas.until("() => !app.graph.nodes.some((node) => node.widgets?.some((one) => one.name.startsWith('$$')))")
    canvas.page.wait_for_timeout(500)
    assert canvas.js("() => document.body.innerText").count("self-attention calls sparse") == 1, "once on the page"

    saved = canvas.js("() => app.graph.serialize()")
    canvas.clear()
    canvas.load(saved)
    assert verdict_of(canvas, apply).startswith(SPARSE)

    canvas.reload()
    settle(canvas, apply, SPARSE)


def test_the_last_line_of_a_run_is_said_once_whether_it_or_the_verdict_comes_last(canvas: Canvas) -> None:
    apply = canvas.add("ApplyDraftAttention")
    told = {"node": str(apply), "workflow": canvas.js("() => app.graph.id")}
    for at, order in ((1.0, ("live_text", "verdict")), (2.0, ("verdict", "live_text"))):
        line = f"DraftAttention: run {at}"
        canvas.js(SHOW_LINE, [str(apply), line])
        canvas.until(LINE_SHOWN, apply)
        for kind in order:
            canvas.js(SEND, [f"draftattention.{kind}", {**told, "at": at, "text": line, "words": line}])
        canvas.until(f"(id) => !({LINE_SHOWN})(id)", apply)
        assert verdict_of(canvas, apply) == line


def test_a_browser_that_was_away_learns_how_the_run_went(canvas: Canvas) -> None:
    apply = canvas.load_demo()["ApplyDraftAttention"]
    assert canvas.run() == "execution_success"
    settle(canvas, apply, SPARSE)
    opened = canvas.js("() => app.graph.serialize()")
    for node in opened["nodes"]:
        node["properties"].pop("draftattention_verdict", None)
    canvas.clear()
    canvas.load(opened)
    settle(canvas, apply, SPARSE)


def test_a_run_of_another_workflow_is_not_taken_for_this_one(canvas: Canvas) -> None:
    apply = canvas.load_demo()["ApplyDraftAttention"]
    canvas.js(HEARD, VERDICT)
    assert canvas.js("async () => (await app.queuePrompt(0, 1), true)")
    canvas.load({**canvas.js("() => app.graph.serialize()"), "id": "12345678-1234-4234-8234-123456789abc"})
    canvas.until("() => window.verdict", timeout=60_000)
    assert canvas.js("() => window.verdict.node") == str(apply)
    assert verdict_of(canvas, apply) == "Last run: none yet."


def test_two_browsers_with_one_workflow_both_learn_it(canvas: Canvas) -> None:
    apply = canvas.load_demo()["ApplyDraftAttention"]
    with canvas.other_browser() as other:
        assert canvas.run() == "execution_success"
        settle(canvas, apply, SPARSE)
        other.wait_for_function(
            """([id, text]) => {
                const kept = app.graph.getNodeById(id).properties
                return kept.draftattention_verdict?.text.startsWith(text) && kept.draftattention_map?.done
                    && kept.draftattention_badges
            }""",
            arg=[apply, SPARSE],
            timeout=60_000,
        )


def test_a_browser_that_goes_away_takes_nothing_with_it(canvas: Canvas) -> None:
    apply = canvas.load_demo(steps=6)["ApplyDraftAttention"]
    with canvas.other_browser() as other:
        assert other.evaluate("async () => (await app.queuePrompt(0, 1), true)")
        canvas.until("(id) => app.graph.getNodeById(id).properties.draftattention_map", apply, timeout=60_000)
    settle(canvas, apply, "self-attention calls sparse")
    kept = canvas.js("(id) => app.graph.getNodeById(id).properties.draftattention_map", apply)
    assert kept["done"] and kept["reached"] == 6, "the run went on, and this browser saw all of it"


def test_a_cancelled_run_says_so_until_the_next_one(canvas: Canvas) -> None:
    ids = canvas.load_demo(steps=60)
    apply = ids["ApplyDraftAttention"]
    canvas.js(
        """() => {
            const stop = ({ detail }) => {
                if (detail.value < 3) return
                app.api.removeEventListener('progress', stop)
                app.api.interrupt(detail.prompt_id)
            }
            app.api.addEventListener('progress', stop)
        }"""
    )
    assert canvas.run() == "execution_interrupted"
    settle(canvas, apply, "cancelled")
    assert "nothing was sparse" not in verdict_of(canvas, apply)
    canvas.set(ids["KSampler"], steps=2)
    assert canvas.run() == "execution_success"
    settle(canvas, apply, SPARSE)
    assert "cancelled" not in verdict_of(canvas, apply)
