"""The line under the node from the first step on, and a report that blames nothing that went as planned."""

from __future__ import annotations

from tests.browser.canvas import Canvas

HEARD = """() => {
    window.lines = []
    const keep = ({ detail }) => window.lines.push([detail.nodeId, detail.text])
    app.api.addEventListener('progress_text', keep)
    for (const end of ['execution_success', 'execution_error'])
        app.api.addEventListener(end, () => app.api.removeEventListener('progress_text', keep), { once: true })
}"""


def test_the_first_step_has_its_line_and_a_planned_dense_start_is_called_planned(canvas: Canvas) -> None:
    apply = canvas.load_demo(steps=4)["ApplyDraftAttention"]
    canvas.set(apply, preset="custom", dense_start=0.3)
    canvas.js(HEARD)
    assert canvas.run() == "execution_success"
    lines = canvas.js("() => window.lines")
    assert {node for node, _ in lines} == {str(apply)}
    texts = [text for _, text in lines]
    assert [text.split(":")[0] for text in texts[:4]] == [f"step {step} of 4" for step in range(1, 5)]
    planned = [text.split(", ")[0] for text in texts if "dense start as planned" in text]
    assert planned == [f"step {step} of 4: dense start as planned" for step in (1, 2)], "0 and 0.25 of the noise range"
    assert "self-attention calls sparse" in texts[3]
    assert not any("of 0 " in text or "unknown" in text for text in texts)


def test_cross_attention_is_no_dense_call_to_the_user(canvas: Canvas) -> None:
    ids = canvas.load_demo()
    apply, report = ids["ApplyDraftAttention"], canvas.add("DraftAttentionReport", (0, 500))
    canvas.connect(apply, "report", report, "report")
    canvas.connect(ids["KSampler"], "LATENT", report, "after")
    assert canvas.run() == "execution_success"
    canvas.until("(id) => app.graph.getNodeById(id).properties.draftattention_map?.done", apply, timeout=30_000)
    canvas.until(
        "(id) => app.graph.getNodeById(id).widgets.some((one) => one.element?.innerText.includes('calls sparse'))",
        report,
    )
    for text in (canvas.text(report, "text"), canvas.text(apply, "verdict"), canvas.text(apply, "live_map")):
        assert "not self-attention" not in text and "dense:" not in text, text
    assert "10 of 10 self-attention calls sparse" in canvas.text(apply, "verdict"), "two steps of five layers"
