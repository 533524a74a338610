"""The curve on the Sparsity Scheduler is edited with mouse and keyboard, and means what the server makes of it."""

from __future__ import annotations

import itertools
import random

import pytest

from draftattention.draftattn_core.run.schedule import (
    PRESET_DENSE_START,
    PRESET_DENSITY,
    PRESETS,
    Schedule,
    preset,
)
from draftattention.draftattn_core.views.charts.curve import even_steps, mean_density
from draftattention.nodes.inputs.checks import scheduler_problems
from draftattention.nodes.inputs.curves import SparsityCurve
from tests.browser.canvas import Canvas

SCHEDULER = "SparsityScheduler"
STEPPED = "0:1, 0.2:1, 0.2:0.5, 0.6:0.3"
MODULE = "await import(`/extensions/draftattention/curve_points.js`)"
LEFT, RIGHT, TOP, BOTTOM = 34, 12, 10, 30
ARITHMETIC = pytest.mark.any_cell("functions of numbers and texts, which know no front end")


def curves() -> list[tuple[tuple[float, float], ...]]:
    """Random ones, some with steps."""
    draw = random.Random(3)
    made = []
    for count in (1, 2, 3, 5, 8, 8):
        places = sorted(round(draw.random(), 3) for _ in range(count))
        if count > 3:
            places[2] = places[1]
        made.append(tuple((place, round(draw.random(), 3)) for place in places))
    return made


def scheduler(canvas: Canvas, points: str | None = STEPPED) -> int:
    node = canvas.add(SCHEDULER)
    if points is not None:
        canvas.set(node, curve="custom points", points=points)
    canvas.until(
        """(id) => {
            const element = app.graph.getNodeById(id).widgets.find((one) => one.name === 'curve_editor').element
            const drawing = element.querySelector('canvas')
            return drawing.clientWidth > 300 && drawing.width > 300
        }""",
        node,
    )
    return node


def place(canvas: Canvas, progress: float, density: float) -> tuple[float, float]:
    """Where on the page a progress and a density are, for a page with one scheduler shown at full size."""
    box = canvas.page.locator(".draftattention-curve canvas").bounding_box()
    assert box is not None
    wide, high = box["width"] - LEFT - RIGHT, box["height"] - TOP - BOTTOM
    return box["x"] + LEFT + progress * wide, box["y"] + TOP + (1 - density) * high


def drag(canvas: Canvas, start: tuple[float, float], end: tuple[float, float]) -> None:
    mouse = canvas.page.mouse
    mouse.move(*place(canvas, *start))
    mouse.down()
    mouse.move(*place(canvas, (start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
    mouse.move(*place(canvas, *end))
    mouse.up()


def points(canvas: Canvas, node: int) -> list[tuple[float, float]]:
    text = canvas.widget(node, "points")
    return [(float(x), float(y)) for x, y in (part.split(":") for part in text.split(","))]


def caption(canvas: Canvas) -> str:
    return canvas.page.locator(".draftattention-caption").inner_text()


@ARITHMETIC
def test_the_browser_computes_what_the_server_computes(canvas: Canvas) -> None:
    made, shares = curves(), (0.0, 0.1, 0.5, 1.0)
    places = [step / 37 for step in range(38)] + [x for curve in made for x, _ in curve]
    found = canvas.js(
        f"""async ([made, shares, places]) => {{
            const curves = {MODULE}
            return made.flatMap((points) => shares.map((share) => {{
                const ended = curves.withEnd(curves.parsePoints(curves.formatPoints(points)), share, 0.6)
                return [ended, places.map((one) => curves.densityAt(ended, one)), curves.meanDensity(ended, places)]
            }}))
        }}""",
        [made, shares, places],
    )
    for (given, share), (ended, densities, mean) in zip(itertools.product(made, shares), found):
        spec = SparsityCurve("custom points", points=given, end_share=share, end_density=0.6)
        schedule = spec.resolve(20)
        assert [tuple(point) for point in ended] == [pytest.approx(point) for point in schedule.points]
        assert densities == pytest.approx([schedule.curve(one) for one in places])
        assert mean == pytest.approx(mean_density(schedule, places))


@ARITHMETIC
def test_presets_have_the_servers_points_for_any_number_of_steps(canvas: Canvas) -> None:
    shapes = {name: {"density": PRESET_DENSITY[name], "dense_start": PRESET_DENSE_START[name]} for name in PRESETS}
    node = canvas.add(SCHEDULER)
    sent = canvas.js("(id) => app.graph.getNodeById(id).constructor.nodeData.inputs.curve.draftattention.presets", node)
    assert sent == shapes
    cases = list(itertools.product(PRESETS, (1, 4, 8, 9, 20, 50), (0.0, 0.33, 0.8)))
    found = canvas.js(
        f"""async ([shapes, cases]) => {{
            const curves = {MODULE}
            return cases.map(([name, steps, density]) => [
                curves.presetPoints(shapes[name], steps, density), curves.evenSteps(steps),
            ])
        }}""",
        [shapes, cases],
    )
    for (name, steps, density), (made, places) in zip(cases, found):
        assert [tuple(point) for point in made] == list(preset(name, steps, density or None).points)
        assert places == list(even_steps(steps))


@ARITHMETIC
@pytest.mark.parametrize("text", ["", "0:1,x", "0.5:1, 0.2:0.5", "0:1.5", "0:", ":1", "0:1:2", "-0.1:1", "0:0x1g", "a"])
def test_the_browser_refuses_the_texts_that_the_server_refuses(canvas: Canvas, text: str) -> None:
    assert scheduler_problems("custom points", text)
    assert canvas.js(f"async (text) => ({MODULE}).parsePoints(text)", text) is None


def test_a_point_is_dragged_and_the_prediction_follows(canvas: Canvas) -> None:
    node = scheduler(canvas)
    before = caption(canvas)
    drag(canvas, (0.6, 0.3), (0.8, 0.12))
    assert points(canvas, node) == [(0, 1), (0.2, 1), (0.2, 0.5), (0.8, pytest.approx(0.12, abs=0.011))]
    schedule = Schedule(tuple(points(canvas, node)))
    mean = mean_density(schedule, even_steps(20))
    assert caption(canvas) == f"20 steps compute {100 * mean:.0f}% of the block pairs and skip {100 - 100 * mean:.0f}%."
    assert caption(canvas) != before


def test_the_prediction_follows_while_the_point_is_dragged(canvas: Canvas) -> None:
    node = scheduler(canvas)
    mouse, said = canvas.page.mouse, [caption(canvas)]
    mouse.move(*place(canvas, 0.6, 0.3))
    mouse.down()
    for density in (0.5, 0.8):
        mouse.move(*place(canvas, 0.6, density), steps=2)
        said.append(caption(canvas))
        mean = mean_density(Schedule(tuple(points(canvas, node))), even_steps(20))
        assert f"compute {100 * mean:.0f}%" in said[-1]
    mouse.up()
    assert len(set(said)) == 3


def test_a_step_moves_as_a_whole_and_stays_between_its_neighbours(canvas: Canvas) -> None:
    node = scheduler(canvas)
    drag(canvas, (0.2, 0.5), (0.4, 0.7))
    assert points(canvas, node) == [(0, 1), (0.4, 1), (0.4, pytest.approx(0.7, abs=0.011)), (0.6, 0.3)]
    drag(canvas, (0.4, 0.7), (0.95, 0.7))
    assert [x for x, _ in points(canvas, node)] == [0, 0.599, 0.599, 0.6], "points never fall together by accident"


def test_a_dragged_point_catches_on_the_samplers_steps(canvas: Canvas) -> None:
    node = scheduler(canvas)
    canvas.set(node, steps=7)
    drag(canvas, (0.6, 0.3), (4 / 7 + 0.008, 0.3))
    assert points(canvas, node)[-1][0] == pytest.approx(4 / 7, abs=5e-4)


def test_points_are_added_and_removed_with_the_mouse(canvas: Canvas) -> None:
    node = scheduler(canvas)
    canvas.page.mouse.dblclick(*place(canvas, 0.8, 0.6))
    assert points(canvas, node)[-1] == (pytest.approx(0.8, abs=0.011), pytest.approx(0.6, abs=0.011))
    canvas.page.mouse.click(*place(canvas, *points(canvas, node)[-1]), button="right")
    assert canvas.widget(node, "points") == STEPPED


def test_the_keyboard_does_all_of_it(canvas: Canvas) -> None:
    node = scheduler(canvas)
    canvas.page.locator(".draftattention-curve canvas").focus()
    press = canvas.page.keyboard.press
    press("End")
    for key in ("ArrowRight", "ArrowUp", "Shift+ArrowDown"):
        press(key)
    assert points(canvas, node)[-1] == (0.61, 0.21)
    press("PageUp")
    press("Insert")
    assert points(canvas, node)[3] == (0.405, 0.355)
    press("Delete")
    assert points(canvas, node) == [(0, 1), (0.2, 1), (0.2, 0.5), (0.61, 0.21)]
    press("s")
    assert points(canvas, node) == [(0, 1), (0.2, 1), (0.2, 0.5), (0.61, 0.5), (0.61, 0.21)]
    press("s")
    assert points(canvas, node) == [(0, 1), (0.2, 1), (0.2, 0.5), (0.61, 0.21)]
    assert canvas.page.locator(".draftattention-spoken").inner_text() == "Point at 20 percent, density 50 percent"
    assert canvas.js("(id) => !!app.graph.getNodeById(id)", node), "Delete took a point, not the node"


def test_a_preset_is_a_start_for_points_of_ones_own(canvas: Canvas) -> None:
    node = scheduler(canvas, None)
    assert canvas.widget(node, "curve") == "balanced"
    drag(canvas, (0.2, 0.2), (0.5, 0.4))
    assert canvas.widget(node, "curve") == "custom points"
    assert points(canvas, node)[:3] == [(0, 1), (0.1, 1), (0.1, 0.4)]
    canvas.page.locator(".draftattention-bar").get_by_text("fast").click()
    assert points(canvas, node) == [pytest.approx(point) for point in preset("fast", 20).points]


def test_one_drag_is_one_step_to_undo(canvas: Canvas) -> None:
    node = scheduler(canvas)
    canvas.js("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    drag(canvas, (0.6, 0.3), (0.8, 0.12))
    moved = canvas.widget(node, "points")
    assert moved != STEPPED
    canvas.page.keyboard.press("Control+z")
    canvas.until(
        "([id, text]) => app.graph.getNodeById(id)?.widgets.find((one) => one.name === 'points').value === text",
        [node, STEPPED],
    )
    canvas.page.keyboard.press("Control+y")
    canvas.until(
        "([id, text]) => app.graph.getNodeById(id)?.widgets.find((one) => one.name === 'points').value === text",
        [node, moved],
    )


def test_points_that_cannot_be_read_are_explained_below_the_last_good_curve(canvas: Canvas) -> None:
    node = scheduler(canvas)
    canvas.set(node, points="0:1, 0.5")
    canvas.until("() => document.querySelector('.draftattention-caption.draftattention-wrong')")
    assert "points: '0.5' is not progress:density; write for example" in caption(canvas)
    drag(canvas, (0.6, 0.3), (0.7, 0.3))
    assert points(canvas, node)[:3] == [(0, 1), (0.2, 1), (0.2, 0.5)]


def test_the_picture_is_drawn_and_follows_the_theme(canvas: Canvas) -> None:
    scheduler(canvas)
    colours = """() => {
        const drawing = document.querySelector('.draftattention-curve canvas')
        const { data } = drawing.getContext('2d').getImageData(0, 0, drawing.width, drawing.height)
        const found = new Map()
        for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) {
            const key = data.slice(at, at + 3).join()
            found.set(key, (found.get(key) ?? 0) + 1)
        }
        return [...found].sort((a, b) => b[1] - a[1]).map(([key]) => key)
    }"""
    dark = canvas.js(colours)
    assert {"79,163,209", "224,160,48"} <= set(dark), "the curve and the steps"
    try:
        canvas.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
        canvas.until(f"(dark) => ({colours})().join() !== dark", ",".join(dark))
    finally:
        canvas.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def test_both_experts_have_a_part_of_the_curve(canvas: Canvas) -> None:
    node = scheduler(canvas)
    for at, values in ((400, {"end_at_step": 4}), (800, {"start_at_step": 4})):
        apply, sampler = canvas.add("ApplyDraftAttention", (at, 500)), canvas.add("KSamplerAdvanced", (at + 300, 500))
        canvas.set(sampler, steps=10, **values)
        canvas.connect(node, "schedule", apply, "schedule")
        canvas.connect(apply, "model", sampler, "model")
    found = canvas.js(
        """async (id) => {
            const { samplersOf } = await import('/extensions/draftattention/sampler_steps.js')
            const parts = samplersOf(app.graph.getNodeById(id)).map(({ first, last, whole }) => [first, last, whole])
            return parts.sort((a, b) => a[0] - b[0])
        }""",
        node,
    )
    assert found == [[0, 0.4, 10], [0.4, 1, 10]]
    canvas.set(node, curve="custom points", points="0:0.01")
    shade = """async (places) => {
        for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
        const drawing = document.querySelector('.draftattention-curve canvas')
        const scale = drawing.width / drawing.clientWidth
        const pen = drawing.getContext('2d')
        const at = (x) => [...pen.getImageData(x * scale, (drawing.clientHeight - 38) * scale, 1, 1).data]
        return places.map((place) => at(34 + place * (drawing.clientWidth - 46)))
    }"""
    first, again, second = canvas.js(shade, [0.12, 0.28, 0.7])
    assert first == again and first[3] and second[3] > first[3], "two parts, shaded differently"


def test_the_servers_own_places_of_the_steps_replace_the_even_ones(canvas: Canvas) -> None:
    ids = canvas.load_demo(steps=6)
    node = canvas.add(SCHEDULER, (0, 500))
    canvas.connect(ids["ModelSamplingSD3"], "MODEL", node, "model")
    canvas.set(node, steps=6)
    canvas.js(
        """() => app.api.addEventListener('executed', ({ detail }) => {
            if (detail.output?.draftattention_steps) window.placed = detail.output.draftattention_steps[0]
        })"""
    )
    assert canvas.run() == "execution_success"
    canvas.until("() => window.placed")
    placed = canvas.js("() => window.placed")
    assert placed["steps"] == 6 and len(placed["places"]) == 6
    assert placed["places"] == sorted(placed["places"]) and placed["places"][0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.any_renderer("the prompt is made of the graph, which knows no renderer")
def test_the_curve_adds_nothing_to_the_prompt(canvas: Canvas) -> None:
    node = scheduler(canvas)
    prompt = canvas.js("async () => (await app.graphToPrompt()).output")
    assert set(prompt[str(node)]["inputs"]) == {
        "curve", "steps", "density", "points", "end_share", "end_density", "layer_bands", "dense_layers"
    }  # fmt: skip


def test_a_curve_of_the_hosts_editor_takes_the_place_of_the_points(canvas: Canvas) -> None:
    if not canvas.js("() => !!LiteGraph.registered_node_types.CurveEditor"):
        pytest.skip("browser tests: this host has no Curve Editor")
    node, editor = scheduler(canvas), canvas.add("CurveEditor", (600, 0))
    canvas.set(editor, curve={"points": [[0, 1], [0.5, 0.25], [1, 0.25]], "interpolation": "linear"})
    canvas.connect(editor, "curve", node, "drawn_curve")
    canvas.until("() => document.querySelector('.draftattention-caption').innerText.includes('after a run')")
    drag(canvas, (0.6, 0.3), (0.8, 0.12))
    assert canvas.widget(node, "points") == STEPPED, "what does not count cannot be edited"
    assert canvas.run() == "execution_success"
    canvas.until("() => document.querySelector('.draftattention-caption').innerText.startsWith('Drawn by')")
    mean = mean_density(Schedule(((0.0, 1.0), (0.5, 0.25), (1.0, 0.25))), even_steps(20))
    assert f"20 steps compute {100 * mean:.0f}%" in caption(canvas)
