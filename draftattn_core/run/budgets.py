"""Budgets: the density of every (bucket, layer, head) that makes the summed squared error least at a given work, or the
work least at a given error.

Errors add up: the outputs of heads are concatenated and those of layers summed, so their squared errors are what is
summed, in the squared unit of V. On convex curves the best way to spend is known: every head is given density until
more of it would save less than one common price (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of
quantizers", IEEE Transactions on Acoustics, Speech, and Signal Processing 36, 1988).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .convex_curve import Array, ConvexCurves

# Halvings of the logarithm of the price. Heads that differ by less than what they leave are treated as equal.
_HALVINGS = 32
_PRICE_RANGE = 1e-15
_TINY = 1e-200


@dataclass(frozen=True, eq=False)
class CurveTable:
    """What a solver is told about one expert.

    Attributes:
        densities: (points,) where errors were measured, ascending, above 0 and below 1.
        squared: (buckets, layers, heads, points) squared error of one output row. A head with a value that is not
            finite gets density 1.
        norms: (buckets, layers, heads) squared norm of one exact output row.
        tail_work: (buckets, layers, heads) work of the head's tail as a share of a dense call's.

    Raises:
        ValueError: if the shapes do not belong together, densities are out of order or range, or a value is negative.
    """

    densities: tuple[float, ...]
    squared: Array
    norms: Array
    tail_work: Array

    def __post_init__(self) -> None:
        points, cells = len(self.densities), self.squared.shape[:-1]
        if self.squared.ndim != 4 or self.squared.shape[-1] != points or 0 in self.squared.shape:
            raise ValueError(f"squared errors must be (buckets, layers, heads, {points}), got {self.squared.shape}")
        if self.norms.shape != cells or self.tail_work.shape != cells:
            raise ValueError(
                f"norms and tail work must be given for {cells}, got {self.norms.shape} and {self.tail_work.shape}"
            )
        ascending = all(a < b for a, b in zip(self.densities[:-1], self.densities[1:], strict=True))
        if points < 2 or not ascending or self.densities[0] <= 0.0 or self.densities[-1] >= 1.0:
            raise ValueError(f"curves need at least 2 densities that ascend between 0 and 1, got {self.densities}")
        if (self.squared < 0).any() or (self.norms < 0).any() or not (self.tail_work >= 0).all():
            raise ValueError("squared errors, norms and work cannot be negative")


@dataclass(frozen=True, eq=False)
class Budgets:
    """What a solver answers.

    Attributes:
        density: (buckets, layers, heads); 1 throughout a dense layer.
        work: (buckets, layers, heads) density plus the tail's work; 1 in a dense layer.
        squared: (buckets, layers, heads) predicted squared error of one output row.
        norms: as in `CurveTable`.
        shares: (buckets,) share of the sparse evaluations in each bucket, 1 in all.
    """

    density: Array
    work: Array
    squared: Array
    norms: Array
    shares: Array

    @property
    def dense(self) -> NDArray[np.bool_]:
        """(buckets, layers) which calls run dense."""
        return np.asarray((self.density >= 1.0).all(-1))

    @property
    def mean_work(self) -> float:
        """Work of the sparse evaluations as a share of dense ones."""
        return float(self.shares @ self.work.mean((1, 2)))

    def layer_errors(self) -> Array:
        """(buckets, layers) predicted relative L2 error of each layer's attention output."""
        return np.asarray(np.sqrt(self.squared.sum(-1) / np.maximum(self.norms.sum(-1), _TINY)))

    def error(self) -> float:
        """Predicted relative L2 error over all outputs."""
        squared, norms = (float(self.shares @ x.sum((1, 2))) for x in (self.squared, self.norms))
        return float(np.sqrt(squared / max(norms, _TINY)))

    def heads(self, bucket: int, layer: int, first_head: int = 0, heads: int | None = None) -> tuple[float, ...] | None:
        """Densities of a call that holds `heads` heads (None: all the others) from the global number `first_head` on;
        None where the layer is dense."""
        if self.dense[bucket, layer]:
            return None
        last = None if heads is None else first_head + heads
        return tuple(self.density[bucket, layer, first_head:last].tolist())


def least_error(
    table: CurveTable,
    mean_work: float,
    *,
    shares: Array | None = None,
    floor: float | Array = 0.0,
    sensitivity: Array | None = None,
) -> Budgets:
    """The densities whose summed squared error is least at a mean work of `mean_work`.

    The work is spent to the last digit, unless the floors alone cost more (then they are the answer) or nothing is left
    to gain. Equal heads get equal densities, whatever their order.

    Args:
        mean_work: mean over buckets (by their shares), layers and heads, as a share of dense attention.
        shares: (buckets,) how many of the sparse evaluations fall into each bucket, in any unit; None for equal shares.
        floor: least density, for all or (buckets, layers, heads); never below the first measured density. With the
            `density` of `within_error` here, every layer keeps its promise and the rest of the work goes where it helps
            most.
        sensitivity: (layers,) or (buckets, layers) factor on the squared errors; None for 1.

    Raises:
        ValueError: if an argument is out of range or of another shape.
    """
    if not mean_work > 0.0:
        raise ValueError(f"mean work must be above 0, got {mean_work}: 1 is dense attention")
    problem = _Problem.of(table, shares, floor, sensitivity)

    def work(filled: Array, tail_work: Array) -> Array:
        return _over_all(problem.shares[:, None, None] * (problem.curves.x(filled) + tail_work) / problem.heads)

    return problem.answer(work, np.full((1, 1, 1), mean_work))


def least_work(
    table: CurveTable,
    error: float,
    *,
    shares: Array | None = None,
    floor: float | Array = 0.0,
    sensitivity: Array | None = None,
) -> Budgets:
    """The least work whose relative L2 error over all outputs is `error`; see `least_error` for the arguments.

    A sensitivity weighs errors and outputs alike. Where the floors alone stay below `error` they are the answer.
    """
    problem = _Problem.of(table, shares, floor, sensitivity)
    weights = problem.weights * problem.shares[:, None, None]

    def saved(filled: Array, tail_work: Array) -> Array:
        return _over_all(-weights * problem.curves.y(filled))

    return problem.answer(saved, -(_checked(error) ** 2) * _over_all(weights * table.norms))


def within_error(
    table: CurveTable, max_error: float, *, shares: Array | None = None, floor: float | Array = 0.0
) -> Budgets:
    """The least work at which the attention output of every layer, in every bucket, has a relative L2 error of at most
    `max_error`; see `least_error` for the arguments."""
    problem = _Problem.of(table, shares, floor, None)

    def saved(filled: Array, tail_work: Array) -> Array:
        return np.asarray(-problem.curves.y(filled).sum(-1, keepdims=True))

    return problem.answer(saved, -(_checked(max_error) ** 2) * table.norms.sum(-1, keepdims=True))


def _checked(error: float) -> float:
    if not 0.0 <= error < np.inf:
        raise ValueError(f"an error is relative and at least 0, got {error}: 0.05 is 5 % of the dense output")
    return error


def _over_all(x: Array) -> Array:
    return np.asarray(x.sum(axis=(0, 1, 2), keepdims=True))


class _Amount(Protocol):
    def __call__(self, filled: Array, tail_work: Array) -> Array:
        """From a filling (buckets, layers, heads, pieces) and the tails' work (buckets, layers, heads): one number per
        group that shares a price, with 1 in place of the axes of a group. Grows with the filling."""


@dataclass(frozen=True, eq=False)
class _Problem:
    """A table with what the caller wants of it; cells are (buckets, layers, heads).

    Attributes:
        curves: one per cell.
        weights: (buckets or 1, layers or 1, 1) factor on squared errors.
        floor: (cells) least density.
        shares: (buckets,) 1 in all.
    """

    table: CurveTable
    curves: ConvexCurves
    weights: Array
    floor: Array
    shares: Array

    @property
    def heads(self) -> int:
        """Heads of all layers together."""
        return self.floor.shape[1] * self.floor.shape[2]

    @classmethod
    def of(cls, table: CurveTable, shares: Array | None, floor: float | Array, sensitivity: Array | None) -> _Problem:
        buckets, layers, _ = cells = table.norms.shape
        shares = np.ones(buckets) if shares is None else np.asarray(shares, dtype=np.float64)
        if shares.shape != (buckets,) or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
            raise ValueError(f"shares must be {buckets} numbers of at least 0, not all 0, got {shares}")
        weights = np.ones(layers) if sensitivity is None else np.asarray(sensitivity, dtype=np.float64)
        if weights.shape not in ((layers,), (buckets, layers)) or not ((weights >= 0) & np.isfinite(weights)).all():
            raise ValueError(
                f"a sensitivity is one finite number of at least 0 for each of {layers} layers, "
                f"or for {buckets} buckets of them, got shape {weights.shape}"
            )
        floors = np.broadcast_to(np.asarray(floor, dtype=np.float64), cells)
        if not ((floors >= 0) & (floors <= 1)).all():
            raise ValueError("floors are densities between 0 and 1")
        broken = ~(np.isfinite(table.squared).all(-1) & np.isfinite(table.norms))
        squared = np.where(broken[..., None], 0.0, table.squared)
        whole = np.concatenate([squared, np.zeros((*cells, 1))], axis=-1)
        curves = ConvexCurves.through(np.array([*table.densities, 1.0]), whole)
        least = np.where(broken, 1.0, np.maximum(floors, table.densities[0]))
        return cls(table, curves, weights.reshape(-1, layers, 1), least, shares / shares.sum())

    def answer(self, amount: _Amount, target: Array) -> Budgets:
        """Spend until `amount` reaches `target`, group by group, and let layers become dense that pay for it anyway.

        Args:
            amount: what grows with a filling; see `_Amount`.
            target: of the shape of an amount.
        """
        dense = np.zeros(self.floor.shape[:2], dtype=np.bool_)
        while True:
            tail_work = np.where(dense[..., None], 0.0, self.table.tail_work)
            least = self.curves.filled_to(np.where(dense[..., None], 1.0, self.floor))
            filled = self._spent(least, partial(amount, tail_work=tail_work), target)
            density = np.minimum(self.curves.x(filled), 1.0)
            work = density + tail_work
            # A dense call has no tail: from here on it costs no more, and has no error.
            found = ~dense & (work.mean(-1) >= 1.0)
            if not found.any():
                break
            dense |= found
        density[dense] = work[dense] = 1.0
        squared = np.where(density >= 1.0, 0.0, self.curves.y(self.curves.filled_to(density)))
        return Budgets(density, work, squared, self.table.norms, self.shares)

    def _spent(self, least: Array, amount: Callable[[Array], Array], target: Array) -> Array:
        """(cells, pieces): every cell filled to the price at which `amount` is `target`."""

        def at(price: Array) -> Array:
            with np.errstate(divide="ignore"):
                return self.curves.filled_at_price((price / self.weights)[..., None], least)

        axes = tuple(axis for axis in range(3) if target.shape[axis] == 1)
        dearest = (self.curves.first.max(-1) * self.weights).max(axis=axes, keepdims=True)
        high = np.maximum(dearest, _TINY / _PRICE_RANGE)
        low = high * _PRICE_RANGE
        for _ in range(_HALVINGS):
            middle = np.sqrt(low * high)
            enough = amount(at(middle)) >= target
            low, high = np.where(enough, middle, low), np.where(enough, high, middle)
        low = np.where(amount(at(low)) >= target, low, _TINY)
        less, more = at(high), at(low)
        # Between the two prices lie the heads that are worth the same: they share what is left.
        before, after = amount(less), amount(more)
        share = (target - before) / np.where(after > before, after - before, 1.0)
        return np.asarray(less + np.clip(share, 0.0, 1.0)[..., None] * (more - less))
