"""A share: what budgets give the heads of one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..method.policy import Policy, head_densities, head_gains
from .convex_curve import Array
from .error_curve import ErrorCurves
from .probe import HeadTails
from .profile_recorder import at_densities


@dataclass(frozen=True)
class Share:
    """Densities, tails and gains of some heads of a layer, and the error promised for them.

    Attributes:
        densities: one per head; None where the layer is dense.
        found: their tails and gains.
        squared: predicted squared error of one output row, summed over the heads; norms: of the exact row.
    """

    densities: tuple[float, ...] | None
    found: HeadTails
    squared: float
    norms: float

    def put_into(self, policy: Policy) -> Policy | None:
        """`policy` with what is given here; None for dense."""
        if self.densities is None:
            return None
        return self.found.put_into(replace(policy, density=self.densities))


@dataclass
class Promise:
    """Squared errors of layers: as promised, and as measured while the promise held."""

    promised: dict[int, tuple[float, float]]
    measured: dict[int, tuple[float, float]]

    def errors(self, of: dict[int, tuple[float, float]]) -> tuple[float, float]:
        """Relative error of the layers that were measured, all together and of the worst of them."""
        kept = [of[layer] for layer in self.measured]
        squared, norms = (sum(each) for each in zip(*kept, strict=True))
        return relative(squared, norms), max(relative(*pair) for pair in kept)


def relative(squared: float, norms: float) -> float:
    return float(np.sqrt(squared / max(norms, 1e-30)))


def error_at(curves: ErrorCurves, densities: Sequence[float] | float) -> float:
    """Squared error of one output row, summed over heads, at each head's density; curves on the CPU.

    Interpolated in logarithms between measured densities, by a line to 0 above the last.
    """
    squared, _ = at_densities(curves)
    each = np.broadcast_to(np.asarray(densities, dtype=np.float64), squared.shape[:1])
    return float(sum(squared_at(curves.densities, row, density) for row, density in zip(squared, each, strict=True)))


def tails_at(curves: ErrorCurves, policy: Policy, heads: int, *, gains: bool) -> HeadTails:
    """Tails and gains that suit a call of `heads` heads at the densities of `policy`; curves on the CPU."""
    densities = head_densities(policy.density, heads)
    if not gains:
        return HeadTails(curves.names(), head_gains(policy.tail_gain, heads))
    _, fitted = at_densities(curves)
    at, points = np.log(np.maximum(densities, 1e-6)), np.log(curves.densities)
    found = tuple(float(np.interp(x, points, row)) for x, row in zip(at, fitted, strict=True))
    return HeadTails(curves.names(), found)


def squared_at(points: Sequence[float], row: Array, density: float) -> float:
    """Squared error of one head at a density, of its curve `row` at `points`; see `error_at`."""
    if density >= points[-1]:
        return float(row[-1]) * (1.0 - density) / (1.0 - points[-1])
    return float(np.exp(np.interp(np.log(max(density, 1e-9)), np.log(points), np.log(np.maximum(row, 1e-30)))))
