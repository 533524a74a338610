"""Inputs as users meet them: what is advanced is folded, what counts for nothing is grey, what is wrong is marked."""

from __future__ import annotations

from tests.browser.canvas import Canvas

APPLY, SCHEDULER = "ApplyDraftAttention", "SparsityScheduler"
VISIBLE = "(id) => { const node = app.graph.getNodeById(id); return %s }"
ROWS = "node.getLayoutWidgets().map((one) => one.name)"


def shown(canvas: Canvas, node: int) -> list[str]:
    """Names of the widgets that have a row of their own, with a control or with the slot that replaces it."""
    if not canvas.nodes_2:
        return list(canvas.js(VISIBLE % ROWS, node))
    canvas.row(node, "preset").wait_for()
    names = set(canvas.js(VISIBLE % "node.widgets.map((one) => one.name)", node))
    return [line.strip() for line in canvas.node_element(node).inner_text().split("\n") if line.strip() in names]


def height(canvas: Canvas, node: int) -> float:
    """Of the node, as drawn at full size."""
    if canvas.nodes_2:
        return float(canvas.node_element(node).bounding_box()["height"])
    return float(canvas.js(VISIBLE % "node.size[1]", node))


def grey(canvas: Canvas, node: int) -> set[str]:
    """Names of the widgets that users cannot change now."""
    script = "node.widgets.filter((one) => one.disabled).map((one) => one.name)"
    return set(canvas.js(VISIBLE % script, node))


def unfold(canvas: Canvas, node: int) -> None:
    if canvas.nodes_2:
        canvas.node_element(node).get_by_text("Show advanced").first.click()
    else:
        canvas.page.mouse.click(*canvas.place(node, "advanced"))


def test_advanced_inputs_are_folded_and_a_button_unfolds_them(canvas: Canvas) -> None:
    node = canvas.add(APPLY)
    folded = shown(canvas, node)
    assert "preset" in folded and "sparsity" not in folded and "strict" not in folded
    low = height(canvas, node)
    assert low < 250, "no gap is left where the inputs were"
    unfold(canvas, node)
    canvas.until(VISIBLE % "node.showAdvanced", node)
    canvas.page.wait_for_timeout(300)
    assert {"preset", "sparsity", "tile", "strict"} <= set(shown(canvas, node))
    assert height(canvas, node) > low + 150


def test_a_linked_advanced_input_stays_in_sight(canvas: Canvas) -> None:
    node, number = canvas.add(APPLY, (400, 100)), canvas.add("PrimitiveInt")
    canvas.connect(number, "INT", node, "min_tokens")
    assert "min_tokens" in shown(canvas, node) and "sparsity" not in shown(canvas, node)


def test_what_the_preset_overrules_is_grey_and_says_why(canvas: Canvas) -> None:
    node = canvas.add(APPLY)
    unfold(canvas, node)
    canvas.until(VISIBLE % "node.showAdvanced", node)
    assert grey(canvas, node) == {"sparsity", "dense_start"}
    assert canvas.tooltip(node, "sparsity").startswith("Not used: the preset auto sets this.")
    canvas.set(node, preset="paper")
    published = {
        "dense_start",
        "tail",
        "blocks",
        "tile",
        "keep_first_frame",
        "keep_last_frame",
        "speed",
        "method",
        "bits",
    }
    assert grey(canvas, node) == published
    assert canvas.tooltip(node, "tail").startswith("Not used: the preset paper is a published method")
    canvas.set(node, preset="custom")
    assert grey(canvas, node) == set()
    assert canvas.tooltip(node, "sparsity").startswith("For the preset custom and the published ones.")


def test_a_speed_overrules_budgets_and_a_preset_that_is_only_a_curve(canvas: Canvas) -> None:
    node = canvas.add(APPLY)
    unfold(canvas, node)
    canvas.until(VISIBLE % "node.showAdvanced", node)
    canvas.set(node, speed="fast")
    assert grey(canvas, node) == {"preset", "sparsity", "dense_start", "budgets"}
    for name in ("preset", "sparsity"):
        assert canvas.tooltip(node, name).startswith("Not used: the speed fast sets")
    canvas.set(node, preset="custom")
    assert grey(canvas, node) == {"budgets"}
    canvas.set(node, speed="off")
    assert grey(canvas, node) == set()


def test_a_rule_of_skip_steps_greys_out_what_it_does_not_read(canvas: Canvas) -> None:
    node = canvas.add("DraftAttentionSkipSteps")
    threshold = {"threshold", "max_in_a_row"}
    assert canvas.widget(node, "rule", "value") == "spread"
    assert grey(canvas, node) == threshold
    assert canvas.tooltip(node, "threshold") == "Not used: the rule spread does not read this."
    canvas.set(node, rule="easycache")
    assert grey(canvas, node) == {"share"}
    canvas.set(node, rule="easycache, published for wan2.1")
    assert grey(canvas, node) == {*threshold, "first_steps", "share"}
    canvas.set(node, rule="spread")
    assert grey(canvas, node) == threshold
    assert canvas.tooltip(node, "share").startswith("For spread: share of the steps")


def test_an_error_that_is_asked_for_overrules_the_sparsity(canvas: Canvas) -> None:
    node = canvas.add(APPLY)
    canvas.set(node, preset="custom", max_error=0.05)
    assert grey(canvas, node) == {"sparsity", "budgets"}
    canvas.set(node, max_error=0.0)
    assert grey(canvas, node) == set()


def test_what_a_schedule_overrules_is_grey_while_it_is_connected(canvas: Canvas) -> None:
    node, scheduler = canvas.add(APPLY, (500, 100)), canvas.add(SCHEDULER)
    canvas.set(node, preset="custom")
    canvas.connect(scheduler, "schedule", node, "schedule")
    canvas.until(VISIBLE % "node.widgets.some((one) => one.disabled)", node)
    assert grey(canvas, node) == {"sparsity", "dense_start"}
    assert canvas.widget(node, "preset", "label") == "preset (schedule's curve)"
    canvas.set(scheduler, dense_layers="0")
    assert grey(canvas, node) == {"sparsity", "dense_start", "dense_layers"}
    canvas.js(
        "([id]) => { const n = app.graph.getNodeById(id); n.disconnectInput(n.findInputSlot('schedule')) }", [node]
    )
    canvas.until(VISIBLE % "!node.widgets.some((one) => one.disabled)", node)
    assert canvas.widget(node, "preset", "label") in (None, "preset")


def test_the_scheduler_greys_out_what_its_curve_does_not_read(canvas: Canvas) -> None:
    node = canvas.add(SCHEDULER)
    assert grey(canvas, node) == {"points", "end_density"}
    canvas.set(node, curve="custom points", end_share=0.1)
    assert grey(canvas, node) == {"density"}


def test_the_scheduler_takes_the_steps_of_the_sampler_that_it_steers(canvas: Canvas) -> None:
    ids = canvas.load_demo(steps=7)
    scheduler = canvas.add(SCHEDULER, (0, 500))
    canvas.connect(scheduler, "schedule", ids[APPLY], "schedule")
    canvas.until("(id) => app.graph.getNodeById(id).widgets.find((one) => one.name === 'steps').value === 7", scheduler)
    assert "steps" in grey(canvas, scheduler)
    assert canvas.tooltip(scheduler, "steps").startswith("Taken from KSampler: 7 steps.")
    canvas.set(ids["KSampler"], steps=9, denoise=0.5)
    prompt = canvas.js(
        """async () => {
            for (const node of app.graph.nodes) for (const widget of node.widgets ?? []) widget.beforeQueued?.({})
            return (await app.graphToPrompt()).output
        }"""
    )
    assert prompt[str(scheduler)]["inputs"]["steps"] == 18, "18 steps, of which denoise 0.5 takes the last 9"


def test_a_text_that_cannot_be_read_is_marked_while_it_is_typed(canvas: Canvas) -> None:
    node = canvas.add(APPLY)
    canvas.set(node, tile="4x4")
    canvas.until(VISIBLE % "node.widgets.find((one) => one.name === 'tile').label === '⚠ tile'", node)
    said = canvas.text(node, "verdict")
    assert "tile: '4x4' is not frames x rows x columns; write for example \"4x4x8\"" in said
    canvas.set(node, tile="4x4x8")
    canvas.until(VISIBLE % "node.widgets.find((one) => one.name === 'tile').label === 'tile'", node)
    assert "tile" not in canvas.text(node, "verdict")


def test_typing_into_the_field_is_what_marks_it(canvas: Canvas) -> None:
    node = canvas.add(APPLY)
    unfold(canvas, node)
    if canvas.nodes_2:
        canvas.row(node, "tile").locator("input").fill("9x9")
    else:
        canvas.page.mouse.dblclick(*canvas.place(node, "tile"))
        field = canvas.page.locator(".graphdialog input, .graphdialog textarea").first
        field.fill("9x9")
        field.press("Enter")
    canvas.until(VISIBLE % "node.widgets.find((one) => one.name === 'tile').label === '⚠ tile'", node)


def test_nothing_runs_with_a_text_that_cannot_be_read(canvas: Canvas) -> None:
    ids = canvas.load_demo()
    canvas.set(ids[APPLY], dense_layers="first")
    answer = canvas.js(
        """async () => {
            const prompt = (await app.graphToPrompt()).output
            const body = JSON.stringify({ prompt })
            const sent = await app.api.fetchApi('/prompt', { method: 'POST', body })
            return [sent.status, await sent.json()]
        }"""
    )
    assert answer[0] == 400
    details = [error["details"] for error in answer[1]["node_errors"][str(ids[APPLY])]["errors"]]
    assert any(
        d.startswith("dense_layers - dense layers: 'first' is neither a layer nor a range; write") for d in details
    )


def test_a_text_that_comes_through_a_link_fails_at_the_node(canvas: Canvas) -> None:
    ids = canvas.load_demo()
    text = canvas.add("PrimitiveString", (0, 500))
    canvas.set(text, value="first")
    canvas.connect(text, "STRING", ids[APPLY], "dense_layers")
    canvas.js(
        """() => {
            const keep = ({ detail }) => { window.failed = detail }
            app.api.addEventListener('execution_error', keep, { once: true })
        }"""
    )
    assert canvas.run() == "execution_error"
    failed = canvas.js("() => [window.failed.node_id, window.failed.exception_message]")
    assert failed[0] == str(ids[APPLY]) and "dense layers: 'first' is neither a layer nor a range; write" in failed[1]


def test_slots_of_our_types_have_colours(canvas: Canvas) -> None:
    colours = canvas.js(
        """() => {
            const style = getComputedStyle(document.documentElement)
            const ours = ['REPORT', 'CAPTURE', 'PROFILE'].map((name) => `DRAFT_ATTENTION_${name}`)
            const types = ['SPARSITY_SCHEDULE', ...ours]
            const chosen = app.canvas.default_connection_color_byType
            return types.map((type) => [chosen[type], style.getPropertyValue(`--color-datatype-${type}`).trim()])
        }"""
    )
    assert len({pair[0] for pair in colours}) == 4
    assert all(classic and classic == nodes2 for classic, nodes2 in colours)
