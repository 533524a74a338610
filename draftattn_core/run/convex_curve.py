"""Convex curves through measured errors: on them, spending first where it helps most is optimal.

A curve is measured at a few densities. Its lower hull is what a mixture of densities can reach; between the hull's
points a convex quadratic spline goes on (L. L. Schumaker, "On shape preserving quadratic spline interpolation", SIAM
Journal on Numerical Analysis 20, 1983). So what a little more density saves only falls along a curve, continuously
but where the hull has straight parts, and the density at which it falls to a given price has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Small enough to be nothing, large enough that a slope over it is finite.
_TINY = 1e-200


def hull_slopes(x: Array, y: Array) -> Array:
    """Slopes of the largest convex function below the points, one per interval: (..., points - 1), not decreasing.

    Args:
        x: (points,) ascending.
        y: (..., points).
    """
    # The hull's slope over an interval is the largest, over the points left of it, of the smallest slope from such a
    # point to any point right of the interval.
    slopes = np.full((*y.shape[:-1], len(x) - 1), -np.inf)
    for left in range(len(x) - 1):
        to_right = (y[..., left + 1 :] - y[..., left : left + 1]) / (x[left + 1 :] - x[left])
        smallest = np.minimum.accumulate(to_right[..., ::-1], axis=-1)[..., ::-1]
        np.maximum(slopes[..., left:], smallest, out=slopes[..., left:])
    return slopes


@dataclass(frozen=True, eq=False)
class ConvexCurves:
    """Convex, non-increasing curves, cut into pieces along which the slope is linear.

    A place on a curve is given as the share 0..1 of each of its pieces that lies left of it ("filled").

    Attributes:
        start: the least x, of all curves.
        value: (...,) y there.
        widths: (..., pieces) extent of each piece along x.
        first, last: (..., pieces) by how much y falls per x at either end of a piece; first >= last >= 0.
        rate: (..., pieces) 1 / (first - last), or a very large number where the slope is constant.
    """

    start: float
    value: Array
    widths: Array
    first: Array
    last: Array
    rate: Array

    @classmethod
    def through(cls, x: Array, y: Array) -> ConvexCurves:
        """Curves that touch the lower hull of the points x (points,) ascending, y (..., points); at least 3 points, the
        last y the smallest."""
        falls = np.maximum(-hull_slopes(x, y), 0.0)
        # sqrt(a b), between two slopes a and b, is the slope of 1 / x where points are even in ratio.
        inner = np.sqrt(falls[..., :-1] * falls[..., 1:])
        before = np.concatenate([2 * falls[..., :1] - inner[..., :1], inner], axis=-1)
        after = np.concatenate([inner, np.maximum(2 * falls[..., -1:] - inner[..., -1:], 0.0)], axis=-1)
        # The slope runs from `before` to the hull's own at the knot, then on to `after`; the knot is where that makes
        # the curve arrive at the hull again.
        bend = before - after
        knot = np.where(bend > 0, (falls - after) / np.maximum(bend, _TINY), 0.5)
        shape = (*falls.shape[:-1], 2 * falls.shape[-1])
        widths = np.stack([knot, 1 - knot], axis=-1) * np.diff(x)[:, None]
        first, last = np.stack([before, falls], axis=-1), np.stack([falls, after], axis=-1)
        rate = 1.0 / np.maximum(first - last, _TINY)
        widths, first, last, rate = (part.reshape(shape) for part in (widths, first, last, rate))
        return cls(float(x[0]), y[..., 0], widths, first, last, rate)

    def filled_at_price(self, price: Array, least: Array) -> Array:
        """(..., pieces) filled as long as more x saves more than `price` (broadcast against the pieces), and at least
        `least` (..., pieces)."""
        share: Array = np.subtract(self.first, price)
        np.multiply(share, self.rate, out=share)
        np.maximum(share, least, out=share)
        np.minimum(share, 1.0, out=share)
        return share

    def filled_to(self, x: Array) -> Array:
        """(..., pieces) filled up to x (...,)."""
        starts = self.start + np.cumsum(self.widths, axis=-1) - self.widths
        share: Array = (x[..., None] - starts) / np.maximum(self.widths, _TINY)
        return np.asarray(np.clip(share, 0.0, 1.0))

    def x(self, filled: Array) -> Array:
        """(...,) where a filling ends."""
        return np.asarray(self.start + np.einsum("...p,...p->...", self.widths, filled))

    def y(self, filled: Array) -> Array:
        """(...,) the curve's value there."""
        mean_slope = self.first - 0.5 * (self.first - self.last) * filled
        fall = np.einsum("...p,...p,...p->...", self.widths, filled, mean_slope)
        return np.asarray(np.maximum(self.value - fall, 0.0))
