"""Undo and redo leave every widget of the pack in use, and what a run came to where it is."""

from __future__ import annotations

from tests.browser.canvas import Canvas
from tests.browser.test_curve import STEPPED, drag, points, scheduler

# Steps to undo that are more than a size: Nodes 2.0 of older front ends measures nodes again after they have grown, and
# takes note of that itself.
STEPS_TO_UNDO = """() => {
    const { undoQueue, activeState } = app.extensionManager.workflow.activeWorkflow.changeTracker
    const plain = ({ nodes }) => JSON.stringify(
        nodes.map(({ size, order, ...rest }) => rest).sort((a, b) => Number(a.id) - Number(b.id))
    )
    const states = [...undoQueue, activeState].map(plain)
    return states.filter((state, index) => index && state !== states[index - 1]).length
}"""
IN_SIGHT = """([id, names]) => names.every((name) => {
    const widget = app.graph.getNodeById(id)?.widgets.find((one) => one.name === name)
    return widget?.element.isConnected && widget.element.getClientRects().length
})"""
SIZES = "() => Object.fromEntries(app.graph.nodes.map(({ id, size }) => [id, [...size]]))"
ADD_ALL = """() => {
    const ours = ([, kind]) => kind.nodeData?.category?.includes('draft attention')
    Object.entries(LiteGraph.registered_node_types).filter(ours).forEach(([name], index) => {
        const node = LiteGraph.createNode(name)
        app.graph.add(node)
        node.pos = [600 * (index % 4), 700 * (1 + Math.floor(index / 4))]
    })
}"""
VALUE = "([id, name, value]) => app.graph.getNodeById(id)?.widgets.find((one) => one.name === name).value === value"


def test_after_undo_the_curve_in_sight_is_the_nodes_own(canvas: Canvas) -> None:
    node = scheduler(canvas)
    canvas.settle()
    drag(canvas, (0.6, 0.3), (0.8, 0.12))
    canvas.command("Comfy.Undo")
    canvas.until(VALUE, [node, "points", STEPPED])
    canvas.until(IN_SIGHT, [node, ["curve_editor"]])
    canvas.page.wait_for_timeout(600)
    drag(canvas, (0.6, 0.3), (0.7, 0.4))
    assert [round(one, 1) for one in points(canvas, node)[-1]] == [0.7, 0.4]
    assert canvas.page.locator(".draftattention-curve").count() == 1


def test_nodes_of_a_workflow_keep_their_sizes_however_often_it_is_opened(canvas: Canvas) -> None:
    """One that grew by itself would be a change, and the next click would write it over what redo brings back."""
    scheduler(canvas)
    canvas.js(ADD_ALL)
    canvas.frames(10)
    before = canvas.js(SIZES)
    assert len(before) > 10
    for _ in range(2):
        canvas.js("() => app.loadGraphData(app.graph.serialize(), false, false)")
        canvas.frames(10)
        assert canvas.js(SIZES) == before


def test_a_click_between_undo_and_redo_changes_nothing(canvas: Canvas) -> None:
    node = scheduler(canvas)
    canvas.settle()
    drag(canvas, (0.6, 0.3), (0.8, 0.12))
    moved = canvas.widget(node, "points")
    canvas.command("Comfy.Undo")
    canvas.until(VALUE, [node, "points", STEPPED])
    canvas.until(IN_SIGHT, [node, ["curve_editor"]])
    canvas.settle()
    canvas.command("Comfy.Redo")
    canvas.until(VALUE, [node, "points", moved])


def test_a_run_is_no_step_to_undo_and_undo_leaves_what_it_came_to(canvas: Canvas) -> None:
    ids = canvas.load_demo()
    apply, sampler = ids["ApplyDraftAttention"], ids["KSampler"]
    report = canvas.add("DraftAttentionReport", (0, 500))
    canvas.connect(apply, "report", report, "report")
    canvas.connect(sampler, "LATENT", report, "after")
    canvas.set(sampler, control_after_generate="fixed")
    canvas.settle()
    before = canvas.widget(apply, "preset")
    canvas.set(apply, preset="fast")
    canvas.settle()
    count = canvas.js(STEPS_TO_UNDO)
    assert canvas.run() == "execution_success"
    canvas.until("(id) => app.graph.getNodeById(id).properties.draftattention_badges", apply)
    canvas.until("(id) => app.graph.getNodeById(id).properties.draftattention_map?.done", apply)
    canvas.page.wait_for_timeout(700)
    canvas.settle()
    assert canvas.js(STEPS_TO_UNDO) == count, "the run is none"

    said = canvas.text(report, "text")
    for _ in range(3):
        canvas.command("Comfy.Undo")
        canvas.page.wait_for_timeout(1000)  # the command does not wait for what it does
        if canvas.widget(apply, "preset") == before:
            break
    canvas.until(VALUE, [apply, "preset", before])
    canvas.until(IN_SIGHT, [apply, ["verdict", "live_map"]])
    assert "self-attention calls sparse" in canvas.text(apply, "verdict")
    assert canvas.text(report, "text") == said
    canvas.command("Comfy.Redo")
    canvas.until(VALUE, [apply, "preset", "fast"])
    canvas.until(IN_SIGHT, [apply, ["verdict", "live_map"]])
