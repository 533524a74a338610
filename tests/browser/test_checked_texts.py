"""Every text that the server parses is refused before anything runs, by input and with a remedy, and marked at once."""

from __future__ import annotations

from typing import Any

import pytest

from draftattention.nodes.inputs.checks import PROBLEMS
from tests.browser.canvas import Canvas

APPLY, SCHEDULER = "ApplyDraftAttention", "SparsityScheduler"
REPORT, CALIBRATE = "DraftAttentionReport", "DraftAttentionCalibrate"
# A value of each input that cannot be read, the values beside it that make it count, and what the user reads.
WRONG = [
    (APPLY, "tile", "4x4", {}, "tile: '4x4' is not frames x rows x columns; write for example"),
    (APPLY, "dense_layers", "first", {}, "dense layers: 'first' is neither a layer nor a range; write"),
    (APPLY, "blocks", "7/7", {}, "blocks: '7/7' is not one of"),
    (SCHEDULER, "points", "0:1, 0.5", {"curve": "custom points"}, "points: '0.5' is not progress:density; write"),
    (SCHEDULER, "layer_bands", "a:1", {}, "layer bands: 'a:1' is not first-last:factor; write"),
    (SCHEDULER, "dense_layers", "3-1", {}, "dense layers: the range '3-1' goes down; write"),
    (SCHEDULER, "curve", "steep", {}, "curve: 'steep' is not one of"),
    (REPORT, "filename_prefix", "../report", {}, "filename_prefix: '../report' leads out of the output folder; write"),
    (CALIBRATE, "name", "a/../b", {}, "name: 'a/../b' cannot name a profile: use letters"),
    (CALIBRATE, "expert", "high/noise", {}, "expert: 'high/noise' is not a plain name"),
]
CASES = pytest.mark.parametrize(("kind", "name", "value", "beside", "text"), WRONG, ids=lambda one: str(one)[:40])
ANSWER = """async () => {
    const { output } = await app.graphToPrompt()
    const sent = await app.api.fetchApi('/prompt', { method: 'POST', body: JSON.stringify({ prompt: output }) })
    return sent.json()
}"""
# Every number of some nodes, above its most and below its least: the inputs, and those of them that the host names.
OUT_OF_RANGE = """async (ids) => {
    const { output } = await app.graphToPrompt()
    const [asked, refused] = [[], []]
    for (const id of ids) for (const { name, type, options } of app.graph.getNodeById(id).widgets) {
        if (type !== 'number' || typeof output[id].inputs[name] !== 'number') continue
        for (const wrong of [options.max + 1, options.min - 1]) {
            const prompt = structuredClone(output)
            prompt[id].inputs[name] = wrong
            const sent = await app.api.fetchApi('/prompt', { method: 'POST', body: JSON.stringify({ prompt }) })
            const { errors } = (await sent.json()).node_errors[id] ?? { errors: [] }
            asked.push([id, name, wrong])
            if (errors.some((error) => error.extra_info.input_name === name)) refused.push([id, name, wrong])
        }
    }
    return [asked, refused]
}"""


def test_no_input_that_is_parsed_is_left_out() -> None:
    listed = {(kind, name) for kind, name, *_ in WRONG}
    parsed = {(kind, name) for kind, check in PROBLEMS.items() for name in check.__annotations__ if name != "return"}
    assert listed == parsed


def everything(canvas: Canvas) -> dict[str, int]:
    """The demo with all nodes that have texts in its path; returns ids by type."""
    ids = canvas.load_demo()
    for row, kind in enumerate((SCHEDULER, REPORT, CALIBRATE)):
        ids[kind] = canvas.add(kind, (450 * row, 700))
    canvas.connect(ids[SCHEDULER], "schedule", ids[APPLY], "schedule")
    canvas.connect(ids[APPLY], "report", ids[REPORT], "report")
    canvas.connect(ids["KSampler"], "LATENT", ids[REPORT], "after")
    canvas.connect(ids[APPLY], "model", ids[CALIBRATE], "model")
    canvas.connect(ids[CALIBRATE], "model", ids["ModelSamplingSD3"], "model")
    return ids


def test_nothing_that_takes_the_value_runs_with_any_of_them(canvas: Canvas) -> None:
    ids = everything(canvas)
    canvas.set(ids["KSampler"], steps=0)  # refused too: what does not depend on the value must not run here
    for kind, name, value, beside, text in WRONG:
        node = ids[kind]
        before = {one: canvas.widget(node, one) for one in (name, *beside)}
        canvas.set(node, **{name: value}, **beside)
        details = [error["details"] for error in canvas.js(ANSWER)["node_errors"][str(node)]["errors"]]
        assert any(text in said for said in details), details
        canvas.set(node, **before)


def test_a_number_out_of_its_range_is_refused_although_texts_beside_it_are_checked_by_us(canvas: Canvas) -> None:
    ids = everything(canvas)
    canvas.set(ids["KSampler"], steps=0)
    asked, refused = canvas.js(OUT_OF_RANGE, [ids[kind] for kind in (APPLY, SCHEDULER, REPORT, CALIBRATE)])
    assert len(asked) > 10 and refused == asked


@CASES
def test_the_widget_is_marked_and_says_why(
    canvas: Canvas, kind: str, name: str, value: str, beside: dict[str, Any], text: str
) -> None:
    node = canvas.add(kind)
    canvas.set(node, **beside)
    plain = canvas.widget(node, name, "label") or name
    canvas.set(node, **{name: value})
    label = "([id, name, label]) => app.graph.getNodeById(id).widgets.find((one) => one.name === name).label === label"
    canvas.until(label, [node, name, f"⚠ {plain}"])
    tooltip = canvas.widget(node, name, "tooltip")
    assert tooltip.startswith(text), tooltip
    canvas.set(node, **{name: {"blocks": "128/64", "curve": "fast", "points": "0:1"}.get(name, "")})
    if name not in ("name", "expert"):  # an empty name is none
        canvas.until(label, [node, name, plain])
