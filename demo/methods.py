"""The runs the demo compares: dense, the published method, ours, and ours with skipped steps, under one schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from draftattention.draftattn_core import PAPER_TILE, Policy, Settings
from draftattention.draftattn_core.run.schedule import Schedule, constant
from draftattention.draftattn_core.run.step_cache import StepCacheSettings

DENSE, PAPER, OURS, COMPOSED = METHODS = ("dense", "paper", "ours", "composed")
WARMUP = 0.15
# Of the composed run. What skipping saves is partly spent on density, since a forecast multiplies the error of what it
# is made from. Where so few steps are skipped that the run would cost more than `ours`, the density stays as it is.
COMPOSED_DENSITY = 1.6
BUDGETS = "error"
SHARE = 0.5


def schedule(method: str, density: float, steps: int) -> Schedule:
    """Dense for the first `WARMUP` share of the steps, then one density; all the way for `dense`."""
    if method == DENSE:
        return constant(1.0)
    plain = constant(density, warmup=WARMUP)
    if method != COMPOSED:
        return plain
    raised = constant(min(1.0, COMPOSED_DENSITY * density), warmup=WARMUP)
    computed = skip().planned_steps(steps)
    return raised if _spent(raised, computed, steps) <= _spent(plain, range(steps), steps) else plain


def _spent(schedule: Schedule, computed: Iterable[int], steps: int) -> float:
    """Densities of the computed steps, summed up: what a run costs where attention is all of it.

    The rest of the model costs the less the more is skipped, so one that is no dearer by this is no dearer at any share
    of attention.
    """
    return sum(schedule.curve(step / steps) for step in computed)


def skip() -> StepCacheSettings:
    """What the composed run skips: half of its steps, evenly from the first on, as this model bears it."""
    return StepCacheSettings("spread", first=1, share=SHARE)


def settings(method: str, density: float, steps: int) -> Settings:
    """Settings of a method.

    Args:
        density: of both sparse methods alone; the composed one takes `COMPOSED_DENSITY` times as much where what
            it skips pays for that.
        steps: of the run.

    Raises:
        ValueError: for a name that is not in `METHODS`, or a density outside 0..1.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    made = Settings(schedule=schedule(method, density, steps))
    if method == PAPER:
        return replace(made, policy=Policy.paper(), q_block=128, k_block=128, tile=PAPER_TILE)
    if method == COMPOSED:
        return replace(made, budgets=BUDGETS, skip=skip())
    return made
