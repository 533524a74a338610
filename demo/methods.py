"""The three runs the demo compares: dense, the published method, and ours, under one schedule."""

from __future__ import annotations

from draftattention.draftattn_core import PAPER_TILE, Policy, Settings
from draftattention.draftattn_core.run.schedule import Schedule, constant

DENSE, PAPER, OURS = METHODS = ("dense", "paper", "ours")
WARMUP = 0.15


def schedule(density: float) -> Schedule:
    """Dense for the first `WARMUP` share of the steps, then one density: the same for both sparse methods."""
    return constant(density, warmup=WARMUP)


def settings(method: str, density: float) -> Settings:
    """Settings of a method at `density`.

    Raises:
        ValueError: for a name other than dense, paper and ours, or a density outside 0..1.
    """
    if method == DENSE:
        return Settings(schedule=constant(1.0))
    if method == PAPER:
        return Settings(policy=Policy.paper(), schedule=schedule(density), q_block=128, k_block=128, tile=PAPER_TILE)
    if method == OURS:
        return Settings(schedule=schedule(density))
    raise ValueError(f"unknown method {method!r}: choose {DENSE}, {PAPER} or {OURS}")
