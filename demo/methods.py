"""The runs the demo compares: dense, the published method, ours, and ours with skipped steps, under one schedule."""

from __future__ import annotations

from dataclasses import replace

from draftattention.draftattn_core import PAPER_TILE, Policy, Settings
from draftattention.draftattn_core.run.schedule import Schedule, constant
from draftattention.draftattn_core.run.step_cache import StepCacheSettings

DENSE, PAPER, OURS, COMPOSED = METHODS = ("dense", "paper", "ours", "composed")
WARMUP = 0.15
# Of the composed run. What skipping saves is partly spent on density, since a forecast multiplies the error of what it
# is made from; it costs less than `ours` all the same.
COMPOSED_DENSITY = 1.6
BUDGETS = "error"
SHARE = 0.5


def schedule(method: str, density: float) -> Schedule:
    """Dense for the first `WARMUP` share of the steps, then one density; all the way for `dense`."""
    if method == DENSE:
        return constant(1.0)
    return constant(min(1.0, COMPOSED_DENSITY * density) if method == COMPOSED else density, warmup=WARMUP)


def skip() -> StepCacheSettings:
    """What the composed run skips: half of its steps, evenly."""
    return StepCacheSettings("spread", share=SHARE)


def settings(method: str, density: float) -> Settings:
    """Settings of a method.

    Args:
        density: of both sparse methods alone; the composed one takes `COMPOSED_DENSITY` times as much.

    Raises:
        ValueError: for a name that is not in `METHODS`, or a density outside 0..1.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    made = Settings(schedule=schedule(method, density))
    if method == PAPER:
        return replace(made, policy=Policy.paper(), q_block=128, k_block=128, tile=PAPER_TILE)
    if method == COMPOSED:
        return replace(made, budgets=BUDGETS, skip=skip())
    return made
