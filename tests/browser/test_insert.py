"""The menu entry of loaders and samplers: DraftAttention Sparse comes between them, wired, and undo takes it back."""

from __future__ import annotations

from typing import Any

from tests.browser.canvas import Canvas

ENTRY = "Speed up with DraftAttention"
WIRES = """() => app.graph.nodes.flatMap((node) => (node.inputs ?? []).map((input, slot) => [
    Number(node.getInputNode(slot)?.id), input.name, Number(node.id),
]).filter(([source]) => source))"""
APPLIES = "() => app.graph.nodes.filter((node) => node.type === 'ApplyDraftAttention').map((node) => Number(node.id))"
OFFERED = """([id, entry]) =>
    app.canvas.getNodeMenuOptions(app.graph.getNodeById(id)).filter((one) => one?.content === entry).length"""
TITLE = """async (id) => {
    for (let frame = 0; frame < 5; frame++) await new Promise(requestAnimationFrame)
    const node = app.graph.getNodeById(id)
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 70, node.pos[1] - 15])
    const box = app.canvas.canvas.getBoundingClientRect()
    return [box.left + x, box.top + y]
}"""


def by_menu(canvas: Canvas, node: int) -> None:
    """Open the node's menu with the mouse and choose the entry."""
    x, y = canvas.js(TITLE, node)
    canvas.page.mouse.click(x, y)
    canvas.page.wait_for_timeout(300)
    canvas.page.mouse.click(x, y, button="right")
    canvas.page.get_by_text(ENTRY).last.click(timeout=10_000)
    canvas.until("() => app.graph.nodes.some((node) => node.type === 'ApplyDraftAttention')")


def wires(canvas: Canvas) -> set[tuple[Any, ...]]:
    return {tuple(one) for one in canvas.js(WIRES)}


def offered(canvas: Canvas, node: int) -> int:
    return int(canvas.js(OFFERED, [node, ENTRY]))


def test_a_loader_gets_one_apply_before_its_samplers_and_undo_takes_it_back(canvas: Canvas) -> None:
    loader = canvas.add("UNETLoader", (100, 150))
    shift = canvas.add("ModelSamplingSD3", (450, 150))
    first, second = canvas.add("KSampler", (720, 150)), canvas.add("KSampler", (720, 560))
    canvas.connect(loader, "MODEL", shift, "model")
    for sampler in (first, second):
        canvas.connect(shift, "MODEL", sampler, "model")
    canvas.js("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.()")
    before = wires(canvas)
    places = canvas.js("() => app.graph.nodes.map((node) => [Number(node.id), [...node.pos]])")
    by_menu(canvas, loader)
    (apply,) = canvas.js(APPLIES)
    expected = {(loader, "model", shift), (shift, "model", apply), (apply, "model", first), (apply, "model", second)}
    assert wires(canvas) == expected
    boxes = canvas.js("() => app.graph.nodes.map((node) => [...node.pos, ...node.size])")
    for index, (x, y, wide, high) in enumerate(boxes):
        for left, top, w, h in boxes[:index]:
            assert x >= left + w or left >= x + wide or y - 30 >= top + h or top - 30 >= y + high, boxes
    assert offered(canvas, loader) == 0, "it is there already"
    canvas.js("() => app.extensionManager.command.execute('Comfy.Undo')")
    canvas.until("() => !app.graph.nodes.some((node) => node.type === 'ApplyDraftAttention')")
    assert wires(canvas) == before
    assert sorted(canvas.js("() => app.graph.nodes.map((node) => [Number(node.id), [...node.pos]])")) == sorted(places)


def test_a_sampler_gets_one_for_itself_alone(canvas: Canvas) -> None:
    loader = canvas.add("UNETLoader", (100, 150))
    dense, sparse = canvas.add("KSampler", (560, 150)), canvas.add("KSampler", (560, 560))
    for sampler in (dense, sparse):
        canvas.connect(loader, "MODEL", sampler, "model")
    by_menu(canvas, sparse)
    (apply,) = canvas.js(APPLIES)
    assert wires(canvas) == {(loader, "model", dense), (loader, "model", apply), (apply, "model", sparse)}
    assert offered(canvas, sparse) == 0 and offered(canvas, dense) == 1


def test_it_is_offered_where_it_makes_sense(canvas: Canvas) -> None:
    loader, guider, other = canvas.add("UNETLoader"), canvas.add("BasicGuider"), canvas.add("EmptyImage")
    assert offered(canvas, guider) == 0, "there is no model yet"
    assert offered(canvas, other) == 0
    assert offered(canvas, loader) == 1, "one to go on from"
    canvas.connect(loader, "MODEL", guider, "model")
    assert offered(canvas, guider) == offered(canvas, loader) == 1
    scheduler = canvas.add("BasicScheduler")
    canvas.connect(loader, "MODEL", scheduler, "model")
    assert offered(canvas, scheduler) == 0, "it makes noise levels, and calls no attention"


def test_the_selection_toolbox_names_it(canvas: Canvas) -> None:
    loader = canvas.add("UNETLoader", (100, 150))
    x, y = canvas.js(TITLE, loader)
    canvas.page.mouse.click(x, y)
    canvas.page.get_by_role("button", name=ENTRY).click()
    (apply,) = canvas.js(APPLIES)
    assert wires(canvas) == {(loader, "model", apply)}
