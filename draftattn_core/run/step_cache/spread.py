"""Spread: which steps are computed is planned before the run: a few from the start, then evenly over the sampler's own.

The steps between are forecast (see `forecast`; by the last output alone until two are computed) and, where the sampler
allows it, corrected (see `corrector`). A plan says beforehand what a run will cost. It is also closer than a threshold
on the forecast's error at equal work: an error weighs by what it does to the rest of the run, which the steps just
behind it do not tell, while the user's schedule already puts its steps where they matter. The first steps are the
exception: some models settle there which video it becomes, and a forecast that errs then makes another one.
`benchmarks/results/frontier` has the figures of both.

Two things guard a plan. Where the error measured at a computed step says that the next forecasts would be of no use,
steps are computed beside the plan until it has fallen (`max_forecast_error`). And under samplers that add noise, x0 is
forecast, what the model takes the video to be: the velocity, and its difference to the latent, follow the fresh noise.
"""

from __future__ import annotations

from functools import lru_cache

# Runs of so few steps are computed whole: each of their steps changes the video.
LEAST = 4
# What the steps at the start leave to the run: so many computed steps, and no more than so many steps from one to the
# next, since the first forecasts behind neighbouring steps reach that many times their distance.
LEFT = 5
FURTHEST = 4


@lru_cache(maxsize=64)
def planned_steps(steps: int, share: float, first: int = 1) -> frozenset[int]:
    """Which of a run's steps are computed: those at its start, the last and those evenly between.

    Args:
        steps: of the sampler in this run.
        share: of them that is computed, above 0 and at most 1; never fewer than `LEAST`.
        first: how many of these are the first ones, as far as `LEFT` and `FURTHEST` hold behind them; 1 at least.
    """
    count = min(steps, max(LEAST, round(share * steps)))
    head = max(1, min(first, count - LEFT, (FURTHEST * count - steps) // (FURTHEST - 1)))
    if count <= head:
        return frozenset(range(steps))
    behind = (head - 1 + round(index * (steps - head) / (count - head)) for index in range(1, count - head + 1))
    return frozenset((*range(head), *behind))
