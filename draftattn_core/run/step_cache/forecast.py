"""Forecast: a skipped evaluation is predicted from the last two computed ones, to first order in the noise level.

With c the last computed evaluation, p the one before, and s the noise level,

    v(s) = v_c + (v_c - v_p) * reach,  reach = (s - s_c) / (s_c - s_p)

or the same for v - x (`difference`, whose order 0 is EasyCache's answer), or for x0, whose reach is taken in s^2: along
the flow d(x0) = -s dv, so that x0 is a line over s^2 where v is one over s. TaylorSeer (J. Liu et al., arXiv
2503.06923) forecasts the features inside a model in this way; of its output alone that costs two latents.

The error is measured, not assumed. Every computed evaluation also tests the forecast that would have stood in for it.
The next forecast is expected to err in proportion to the distance in s that it covers: measured, errors grow more
slowly than the second order that a Taylor series promises. What counts is the sum over the evaluations skipped in a
row, for the latent carries on the error of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .corrector import Skipped, weights
from .latents import Parts, beside, kept
from .log import Reading
from .settings import Quantity


@dataclass(frozen=True, eq=False)
class _Anchor:
    level: float
    values: Parts


class ForecastState:
    """What one branch remembers: what is forecast, at its last two computed evaluations; if it decides, the error.

    At a noise level that was computed already (Heun's second visit) the new output replaces the old one.
    """

    def __init__(self, quantity: Quantity, offload: bool) -> None:
        self._quantity = quantity
        self._offload = offload
        self._last: _Anchor | None = None
        self._before: _Anchor | None = None
        self._error: Reading | None = None
        self._distance = 0.0
        self._sum = 0.0

    def tensors(self) -> Iterator[Tensor]:
        for anchor in (self._last, self._before):
            if anchor is not None:
                yield from anchor.values

    @property
    def level(self) -> float | None:
        """Noise level of the last computed evaluation."""
        return None if self._last is None else self._last.level

    def reach(self, level: float) -> float:
        """How far beyond the last two computed evaluations this level lies, their distance being 1; 0 if one is all."""
        if self._last is None or self._before is None:
            return 0.0
        return abs(level - self._last.level) / abs(self._last.level - self._before.level)

    def error(self, level: float) -> float | None:
        """Expected error of this forecast and of those since the last computed evaluation, summed; None if unmeasured.

        At the level computed last there is no way to go, which says nothing of the other latent of a second visit: what
        was measured there stands. Waits for the last measured error to leave the device, once.
        """
        if self._last is None or self._error is None:
            return None
        distance = abs(level - self._last.level) or self._distance
        return self._sum + self._error.read() * distance / self._distance

    def skipped(self, expected: float) -> None:
        """This evaluation is skipped, with the sum that `error` said."""
        self._sum = expected

    def measured(self, error: Reading, level: float) -> None:
        """The forecast for this level was compared with what has been computed; to be said before `store`."""
        if self._last is not None and level != self._last.level:
            self._error, self._distance = error, abs(level - self._last.level)

    def predict(self, x: Parts, level: float) -> Parts | None:
        """The velocity at this level; of order 0 if only one evaluation has been computed, None if none has."""
        last, before = self._last, self._before
        if last is None:
            return None
        values = beside(last.values, x)
        latent = tuple(now.float() for now in x)
        if before is not None:
            reach = _position(self._quantity, level, last.level, before.level)
            values = tuple(c + (c - p) * reach for c, p in zip(values, beside(before.values, x), strict=True))
        if self._quantity == "velocity":
            return values
        if self._quantity == "difference":
            return tuple(now + value for now, value in zip(latent, values, strict=True))
        return tuple((now - value) / level for now, value in zip(latent, values, strict=True))

    def corrected(
        self, x: Parts, v: Parts, level: float, next_level: float, skipped: Sequence[Skipped]
    ) -> Parts | None:
        """The computed velocity, such that its Euler step makes good what the forecasts since the last one missed.

        To be said before `store`. None if nothing was forecast.

        Args:
            skipped: the steps skipped by the stream; those before the last evaluation of this branch do not count.
        """
        last, before = self._last, self._before
        if last is None or not level < last.level or next_level == level:
            return None
        since = [step for step in skipped if level < step.level < last.level]
        if not since:
            return None
        weight = weights(
            since,
            level,
            last.level,
            None if before is None else before.level,
            partial(_position, self._quantity),
            (lambda s: -1.0 / s) if self._quantity == "x0" else (lambda _: 1.0),
        )
        width = next_level - level
        moved = tuple(
            velocity.float() + (now - c) * (weight.of_now / width)
            for velocity, now, c in zip(v, self._values(x, v, level), beside(last.values, x), strict=True)
        )
        if before is None:
            return moved
        pairs = zip(moved, beside(last.values, x), beside(before.values, x), strict=True)
        return tuple(velocity + (c - p) * (weight.of_before / width) for velocity, c, p in pairs)

    def store(self, x: Parts, v: Parts, level: float) -> None:
        """Take in a computed evaluation; the sum begins anew."""
        self._sum = 0.0
        values = self._values(x, v, level)
        if self._last is not None and self._last.level != level:
            self._before = self._last
        self._last = _Anchor(level, kept(values, self._offload))

    def _values(self, x: Parts, v: Parts, level: float) -> Parts:
        """What is forecast, at a computed evaluation, float32."""
        values = tuple(velocity.float() for velocity in v)
        if self._quantity == "difference":
            return tuple(velocity - now.float() for velocity, now in zip(values, x, strict=True))
        if self._quantity == "x0":
            return tuple(now.float() - velocity * level for velocity, now in zip(values, x, strict=True))
        return values


def _position(quantity: Quantity, s: float, c: float, p: float) -> float:
    """Signed reach, in s or in s^2."""
    if quantity == "x0":
        return (s * s - c * c) / (c * c - p * p)
    return (s - c) / (c - p)
