"""Speed: one word that sets sparse density, budgets and step skipping together: points of the measured frontier.

A planned share of the steps is computed, some of them at the start and the others evenly behind, dense or by sparse
evaluations whose densities are spent by measured error; forecasts answer the others. Which densities and shares go
together is measured (`benchmarks/results/frontier`), and the rule that picked these points from it is a test
(`tests/benchmarks/test_speeds_rule.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .schedule import Schedule, constant
from .step_cache.settings import StepCacheSettings

# The frontier was measured with 1 dense evaluation at the start of up to 20 steps and 3 of 50.
_DENSE_PER_STEP = 0.06
# Share of the steps that are computed at the start, where some models settle which video it becomes: 3 of 20, as far as
# a speed computes that many.
FIRST_SHARE = 0.15


@dataclass(frozen=True)
class Speed:
    """A point of the frontier.

    Attributes:
        density: mean share of block pairs computed exactly in a sparse evaluation, spent by measured error; 1 is dense.
        share: of the steps that are computed, see `StepCacheSettings`.
    """

    density: float
    share: float

    def schedule(self, steps: int) -> Schedule:
        """The densities of a run of so many steps: its first evaluations are dense."""
        return constant(self.density, warmup=min(1.0, dense_evaluations(steps) / steps))

    def skip(self) -> StepCacheSettings:
        """What a run skips: nothing where its few steps are all planned (see `nothing_to_gain`, which says so)."""
        return StepCacheSettings("spread", first_share=FIRST_SHARE, share=self.share)


SPEEDS: Mapping[str, Speed] = {
    "quality": Speed(1.00, 0.40),
    "balanced": Speed(0.50, 0.50),
    "fast": Speed(0.40, 0.40),
    "max": Speed(0.40, 0.25),
}
# The cheapest that keeps the video on the worst of the measured checkpoints and sizes; as long as none does, the one
# that comes closest to it there.
AUTO = "quality"


def dense_evaluations(steps: int) -> int:
    """How many evaluations at the start of a run are dense."""
    return max(1, round(_DENSE_PER_STEP * steps))


def speed_of(name: str) -> Speed:
    """A speed by its name.

    Args:
        name: one of `SPEEDS`, or "auto", which is `AUTO`.

    Raises:
        ValueError: if no speed has that name.
    """
    if name == "auto":
        return SPEEDS[AUTO]
    if name not in SPEEDS:
        raise ValueError(f"unknown speed {name!r}: choose one of auto, {', '.join(SPEEDS)}")
    return SPEEDS[name]
