"""Speed: one word that sets sparse density, budgets and step skipping together: points of the measured frontier.

Sparse evaluations, spent by measured error, leave fewer of them to be wrong; the forecast answers the others. Which
densities and thresholds go together is measured (`benchmarks/results/frontier`), and the rule that picked these points
from it is a test (`tests/benchmarks/test_speeds_rule.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .schedule import Schedule, constant
from .step_cache.settings import StepCacheSettings, nothing_to_gain

# The frontier was measured with 2 dense and computed evaluations of 8, 3 of 20 and 5 of 50.
_FIRST, _FIRST_PER_STEP, _LEAST_FIRST = 1.5, 0.07, 2


@dataclass(frozen=True)
class Speed:
    """A point of the frontier.

    Attributes:
        density: mean share of block pairs computed exactly in a sparse evaluation, spent by measured error.
        threshold: of the forecast, see `StepCacheSettings`.
    """

    density: float
    threshold: float

    def schedule(self, steps: int) -> Schedule:
        """The densities of a run of so many steps: its first evaluations are dense."""
        return constant(self.density, warmup=min(1.0, first_evaluations(steps) / steps))

    def skip(self, steps: int) -> StepCacheSettings:
        """What a run of so many steps skips; where it has nothing to gain, nothing."""
        settings = StepCacheSettings("forecast", self.threshold, first_evaluations(steps))
        return StepCacheSettings() if nothing_to_gain(settings, steps) else settings


SPEEDS: Mapping[str, Speed] = {
    "quality": Speed(0.50, 0.05),
    "balanced": Speed(0.35, 0.05),
    "fast": Speed(0.40, 0.20),
    "max": Speed(0.25, 0.20),
}
# From so many video tokens on `auto` dares the middle of the frontier; below, few blocks a row leave sparsity little.
LONG_VIDEO_TOKENS = 8_000


def first_evaluations(steps: int) -> int:
    """How many evaluations at the start of a run are computed, densely."""
    return max(_LEAST_FIRST, round(_FIRST + _FIRST_PER_STEP * steps))


def speed_of(name: str, tokens: int) -> Speed:
    """A speed by its name.

    Args:
        name: one of `SPEEDS`, or "auto", which goes by the size of the video.
        tokens: video tokens; 0 if unknown.

    Raises:
        ValueError: if no speed has that name.
    """
    if name == "auto":
        return SPEEDS["balanced" if tokens >= LONG_VIDEO_TOKENS else "quality"]
    if name not in SPEEDS:
        raise ValueError(f"unknown speed {name!r}: choose one of auto, {', '.join(SPEEDS)}")
    return SPEEDS[name]
