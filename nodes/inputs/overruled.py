"""Which inputs count for nothing, by the choice that overrules them. The browser greys them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .curves import CURVES
from .presets import METHOD_NAMES, NO_SPEED, PRESET_NAMES, PUBLISHED_PRESETS, SPEED_NAMES, UNANCHORED

CURVE_INPUTS = ("sparsity", "dense_start")
# A published method has its own rule, start, blocks and tile, its own stand-in for what it skips, and anchors nothing.
PUBLISHED_IGNORES = (
    "dense_start", "tail", "blocks", "tile", "keep_first_frame", "keep_last_frame", "speed", "method", "bits"
)  # fmt: skip
BY_PRESET: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(PRESET_NAMES, CURVE_INPUTS),
    **dict.fromkeys(PUBLISHED_PRESETS, PUBLISHED_IGNORES),
    "calibatt": ("sparsity", *PUBLISHED_IGNORES),
    "custom": (),
}
# Masks that are fixed or measured anchor nothing; bands need an order that has no tile; calibrated masks come with
# their blocks and densities.
ANCHORS = ("keep_first_frame", "keep_last_frame")
_METHODS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(UNANCHORED, ANCHORS),
    "svg": ("tile", *ANCHORS),
    "calibatt": ("sparsity", "blocks", "tile", *ANCHORS),
}
BY_METHOD: Mapping[str, tuple[str, ...]] = {name: _METHODS.get(name, ()) for name in METHOD_NAMES}
# A speed spends its densities by measured error.
BY_SPEED: Mapping[str, tuple[str, ...]] = {name: () if name == NO_SPEED else ("budgets",) for name in SPEED_NAMES}
# Presets whose own curve a speed replaces say nothing any more.
SPEED_REPLACES = tuple(name for name in PRESET_NAMES if name not in (*PUBLISHED_PRESETS, "custom"))
# A connected schedule brings the whole curve.
BY_SCHEDULE = CURVE_INPUTS
# An error that is asked for sets the densities, measured on the model; a schedule's dense stretches stay.
BY_MAX_ERROR = ("sparsity", "budgets")
BY_CURVE: Mapping[str, tuple[str, ...]] = {name: ("density",) if name == CURVES[-1] else ("points",) for name in CURVES}
# Inputs of Skip Steps that only its rules with a threshold read, the one that only a plan does, and what both read.
THRESHOLD_INPUTS = ("threshold", "max_in_a_row")
PLAN_INPUTS = ("share",)
OF_ALL_RULES = ("first_steps",)
_RULES: Mapping[str, tuple[str, ...]] = {
    "spread": THRESHOLD_INPUTS,
    **dict.fromkeys(("forecast", "easycache"), PLAN_INPUTS),
}


def by_rule(rules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What each rule of Skip Steps does not read; those published for a model bring their own values."""
    return {rule: _RULES.get(rule, (*THRESHOLD_INPUTS, *PLAN_INPUTS, *OF_ALL_RULES)) for rule in rules}
