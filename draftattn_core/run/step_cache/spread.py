"""Spread: which steps are computed is planned before the run, evenly over the sampler's own steps.

The steps between are forecast (see `forecast`; by the last output alone until two are computed) and, where the sampler
allows it, corrected (see `corrector`). A plan says beforehand what a run will cost. It is also closer than a threshold
on the forecast's error at equal work: an error weighs by what it does to the rest of the run, which the steps just
behind it do not tell, while the user's schedule already puts its steps where they matter.
`benchmarks/results/frontier` has the figures.

Two things guard a plan. Where the error measured at a computed step says that the next forecasts would be of no use,
steps are computed beside the plan until it has fallen (`max_forecast_error`). And under samplers that add noise, x0 is
forecast, what the model takes the video to be: the velocity, and its difference to the latent, follow the fresh noise.
"""

from __future__ import annotations

from functools import lru_cache

# Runs of so few steps are computed whole: each of their steps changes the video.
LEAST = 4


@lru_cache(maxsize=64)
def planned_steps(steps: int, share: float) -> frozenset[int]:
    """Which of a run's steps are computed: the first, the last and those evenly between.

    Args:
        steps: of the sampler in this run.
        share: of them that is computed, above 0 and at most 1; never fewer than `LEAST`.
    """
    count = min(steps, max(LEAST, round(share * steps)))
    if count < 2:
        return frozenset(range(steps))
    return frozenset(round(index * (steps - 1) / (count - 1)) for index in range(count))
