"""What nodes find is read on the node, without another node for it."""

from __future__ import annotations

from tests.browser.canvas import Canvas

HEARD = """() => {
    window.heard = {}
    app.api.addEventListener('executed', ({ detail }) => { window.heard[detail.node] = detail.output.text })
}"""


def test_the_doctor_says_what_it_found(canvas: Canvas) -> None:
    doctor = canvas.add("DraftAttentionDoctor")
    assert canvas.text(doctor, "text") == "Run the workflow to see what this machine can do."
    canvas.js(HEARD)
    assert canvas.run() == "execution_success"
    canvas.until("(id) => window.heard[id]", doctor)
    found = canvas.js("(id) => [window.heard[id]].flat().join('\\n')", doctor)
    assert "Backends" in found
    assert canvas.text(doctor, "text").split() == [*found.split(), "Copy"]
    shown = "(id) => app.graph.getNodeById(id).widgets[0].element.querySelector('pre').textContent"
    assert canvas.js(shown, doctor) == found, "what is copied is what was found"


def test_report_and_compare_say_what_they_found_and_keep_it_from_the_saved_workflow(canvas: Canvas) -> None:
    ids = canvas.load_demo()
    report, compare = canvas.add("DraftAttentionReport", (0, 500)), canvas.add("DraftAttentionCompare", (500, 500))
    canvas.connect(ids["ApplyDraftAttention"], "report", report, "report")
    canvas.connect(ids["KSampler"], "LATENT", report, "after")
    for entry in ("reference", "clip"):
        canvas.connect(ids["KSampler"], "LATENT", compare, entry)
    before = canvas.js("(id) => app.graph.getNodeById(id).size[1]", report)
    assert canvas.text(report, "text") == "The report appears here after the run."
    assert canvas.run() == "execution_success"
    canvas.until(
        "([id, text]) => app.graph.getNodeById(id).widgets.some((one) => one.element?.innerText.includes(text))",
        [compare, "Identical, bit for bit"],
    )
    assert "self-attention calls sparse" in canvas.text(report, "text")
    assert canvas.js("(id) => app.graph.getNodeById(id).size[1]", report) > before, "the node grows with its text"
    prompt = canvas.js("async () => (await app.graphToPrompt()).output")
    assert set(prompt[str(report)]["inputs"]) == {"report", "after", "save_json", "filename_prefix"}
    saved = canvas.js("(id) => JSON.stringify(app.graph.getNodeById(id).serialize())", report)
    assert "self-attention" not in saved, "what a machine found is not handed on with the workflow"


def test_a_text_is_there_again_when_its_tab_comes_back(canvas: Canvas) -> None:
    doctor = canvas.add("DraftAttentionDoctor")
    assert canvas.run() == "execution_success"
    canvas.until("(id) => app.graph.getNodeById(id).widgets[0].element.innerText.includes('Backends')", doctor)
    canvas.js("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    canvas.until("() => !app.graph.nodes.some((node) => node.type === 'DraftAttentionDoctor')")
    canvas.js("() => app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    canvas.until("() => app.graph.nodes.some((node) => node.type === 'DraftAttentionDoctor')")
    canvas.until("(id) => app.graph.getNodeById(id).widgets[0].element.innerText.includes('Backends')", doctor)
