"""The inputs that are greyed out are those that change nothing, and no others."""

from __future__ import annotations

import pytest

STEPS, TOKENS = 30, 80_000
CHANGED = {
    "sparsity": 0.5,
    "dense_start": 0.4,
    "tail": "none",
    "blocks": (64, 64),
    "tile": (2, 8, 8),
    "dense_layers": (3,),
    "min_tokens": 7,
    "anchor_first": True,
    "anchor_last": True,
    "backend": "torch",
    "speed": "fast",
    "method": "row",
    "bits": "8",
}
AS_NAMED = {"anchor_first": "keep_first_frame", "anchor_last": "keep_last_frame"}


def without_effect(presets, **choices) -> set[str]:
    before = presets.Choices(**choices).settings(STEPS, TOKENS)
    # The rule that ranks by the tail's error needs one.
    changes = CHANGED | ({"tail": "linear0"} if choices.get("method") == "tail_error" else {})
    changed = {name: presets.Choices(**{**choices, name: value}) for name, value in changes.items()}
    same = {name for name, made in changed.items() if made.settings(STEPS, TOKENS) == before}
    return {AS_NAMED.get(name, name) for name in same}


def test_a_preset_overrules_what_changes_nothing_under_it(part, with_masks) -> None:
    presets, overruled = part("nodes.inputs.presets"), part("nodes.inputs.overruled")
    assert set(overruled.BY_PRESET) == set(presets.PRESET_NAMES)
    for name, inputs in overruled.BY_PRESET.items():
        assert without_effect(presets, preset=name, profile=with_masks) == set(inputs), name


def test_a_method_overrules_what_it_brings_itself(part, with_masks) -> None:
    presets, overruled = part("nodes.inputs.presets"), part("nodes.inputs.overruled")
    assert set(overruled.BY_METHOD) == set(presets.METHOD_NAMES)
    for name, inputs in overruled.BY_METHOD.items():
        tail = "mean" if name == "tail_error" else "auto"
        found = without_effect(presets, preset="custom", method=name, tail=tail, profile=with_masks)
        assert found - {"method"} == set(inputs), name


def test_a_schedule_overrules_the_curve_on_top(part, with_masks) -> None:
    presets, overruled = part("nodes.inputs.presets"), part("nodes.inputs.overruled")
    schedule = part("draftattn_core.run.schedule").constant(0.5)
    for name, inputs in overruled.BY_PRESET.items():
        found = without_effect(presets, preset=name, schedule=schedule, profile=with_masks)
        assert found == {*inputs, *overruled.BY_SCHEDULE}, name


@pytest.mark.parametrize("steps", [4, 20])
def test_a_curve_overrules_the_points_or_the_density(part, steps: int) -> None:
    curves, overruled = part("nodes.inputs.curves"), part("nodes.inputs.overruled")
    changes = {"points": ((0.0, 0.9),), "density": 0.77}
    assert set(overruled.BY_CURVE) == set(curves.CURVES)
    for name, inputs in overruled.BY_CURVE.items():
        base = {"curve": name, "points": ((0.0, 0.3),), "density": 0.4}
        before = curves.SparsityCurve(**base).resolve(steps)
        same = {
            key
            for key, value in changes.items()
            if curves.SparsityCurve(**{**base, key: value}).resolve(steps) == before
        }
        assert same == set(inputs), name


def test_a_speed_overrules_budgets_and_the_presets_that_bring_only_a_curve(part, with_masks) -> None:
    presets, overruled = part("nodes.inputs.presets"), part("nodes.inputs.overruled")

    def made(**choices):
        return presets.Choices(profile=with_masks, **choices).settings(STEPS, TOKENS)

    assert set(overruled.BY_SPEED) == set(presets.SPEED_NAMES)
    for speed, inputs in overruled.BY_SPEED.items():
        same = made(speed=speed) == made(speed=speed, budgets="error")
        assert same == (inputs == ("budgets",)), speed
    replaced = {name for name in presets.PRESET_NAMES if made(preset=name, speed="fast") == made(speed="fast")}
    assert replaced == set(overruled.SPEED_REPLACES)


def test_a_rule_of_skip_steps_overrules_what_only_others_read(part) -> None:
    found = part("nodes.inputs.overruled").by_rule(
        ["spread", "forecast", "easycache", "easycache, published for wan2.1"]
    )
    threshold = ("threshold", "max_in_a_row")
    assert list(found.values()) == [threshold, ("share",), ("share",), (*threshold, "share", "first_steps")]
