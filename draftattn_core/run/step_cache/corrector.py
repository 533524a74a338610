"""Correction: a computed evaluation makes good what the forecasts before it missed.

Between two computed evaluations c and n a forecast extrapolates; once n is computed, the same steps can be
interpolated, which errs far less. Under Euler's rule, x' = x + v (s' - s), both are sums over the skipped steps k, so
the latent is off by

    e = sum_k (s_k' - s_k) f_k (q(s_k; n, c) - q(s_k; c, p)),   q(s; a, b) = q_b + (q_a - q_b) (s - s_b) / (s_a - s_b),

where q is what is forecast, f_k how it enters the velocity, and p the computed evaluation before c (q is q_c if there
is none). The output for n is given as v + e / (s_n' - s_n), whose Euler step takes the latent to where it should be.
That is the corrector of a multistep method (UniPC, W. Zhao et al., arXiv 2302.04867, section 3, applies one to the same
effect), written as a model's output, so it needs no sampler of its own. Other samplers remember outputs, which must
then be the model's own: nothing is corrected there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Skipped:
    """A skipped Euler step, from noise level `level` to `next_level`."""

    level: float
    next_level: float


@dataclass(frozen=True)
class Weights:
    """e = of_now * (q_n - q_c) + of_before * (q_c - q_p), of one correction."""

    of_now: float
    of_before: float


def weights(
    skipped: Sequence[Skipped],
    now: float,
    last: float,
    before: float | None,
    position: Callable[[float, float, float], float],
    factor: Callable[[float], float],
) -> Weights:
    """What a correction weighs the differences of computed evaluations with.

    Args:
        skipped: the steps since the evaluation at level `last`.
        now, last, before: noise levels of n, c and p; p may be missing.
        position: (s, a, b) to the place of s beyond a, the distance from b to a being 1.
        factor: f of a noise level.
    """
    of_now = of_before = 0.0
    for step in skipped:
        width = (step.next_level - step.level) * factor(step.level)
        # From c, the way to n being 1: what lies between is 1 + position, which is negative there.
        of_now += width * (1.0 + position(step.level, now, last))
        if before is not None:
            of_before -= width * position(step.level, last, before)
    return Weights(of_now, of_before)
