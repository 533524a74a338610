"""The runs the demo compares: dense, the published method, ours, and ours with skipped steps, under one schedule."""

from __future__ import annotations

from dataclasses import replace

from draftattention.draftattn_core import PAPER_TILE, Policy, Settings
from draftattention.draftattn_core.run.schedule import Schedule, constant
from draftattention.draftattn_core.run.step_cache import StepCacheSettings

DENSE, PAPER, OURS, COMPOSED = METHODS = ("dense", "paper", "ours", "composed")
WARMUP = 0.15
# Of the composed run: which densities its heads have, and what the forecast may err by before a step is computed.
BUDGETS = "error"
THRESHOLD = 0.03


def schedule(density: float) -> Schedule:
    """Dense for the first `WARMUP` share of the steps, then one density: the same for all sparse methods."""
    return constant(density, warmup=WARMUP)


def skip() -> StepCacheSettings:
    """What the composed run skips: never one of its dense evaluations."""
    return StepCacheSettings("forecast", THRESHOLD, first_share=WARMUP)


def settings(method: str, density: float) -> Settings:
    """Settings of a method at `density`.

    Raises:
        ValueError: for a name that is not in `METHODS`, or a density outside 0..1.
    """
    if method == DENSE:
        return Settings(schedule=constant(1.0))
    if method == PAPER:
        return Settings(policy=Policy.paper(), schedule=schedule(density), q_block=128, k_block=128, tile=PAPER_TILE)
    ours = Settings(schedule=schedule(density))
    if method == OURS:
        return ours
    if method == COMPOSED:
        return replace(ours, budgets=BUDGETS, skip=skip())
    raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
