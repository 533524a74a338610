"""Budgets from needs alone, as a ready-made prior from a public table would give them.

What is made from needs is made of runs of other seeds of the very model that is judged, with an exponent or a curve
shape fitted to that model's errors: a prior for a model that was never measured has neither, so this flatters it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.calibration.needs import Array
from draftattention.draftattn_core.run.budgets import CurveTable, least_error

PROPORTION, POWER = "need, density in proportion", "need, fitted power"
CURVE, ABSOLUTE = "need, fitted curve", "need, fitted curve of absolute error"
NORMED, NORMS = "need, fitted curve, measured norms", "measured norms alone"
OWN_PROPORTION, OWN_ABSOLUTE = "own need, density in proportion", "own need, fitted curve of absolute error"
# Of these the judged evaluation itself gives the needs.
OWN = (OWN_PROPORTION, OWN_ABSOLUTE)
PRIORS = (PROPORTION, POWER, CURVE, ABSOLUTE, NORMED, NORMS, *OWN)

EXPONENTS = tuple(x / 4 for x in range(-4, 9))
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one evaluation of a dense run says: (layers, heads) needs and squared norms of a row's exact output, and
    (layers, heads, points) squared errors at the densities of a curve."""

    needs: Array
    norms: Array
    squared: Array


def in_proportion(weights: Array, mean: float) -> Array:
    """Densities proportional to positive `weights`, none above 1, of that mean (0..1)."""
    if not 0.0 < mean <= 1.0 or not (weights > 0).all():
        raise ValueError(f"densities in proportion need positive weights and a mean within 0..1, got {mean}")
    low, high = 0.0, 1.0 / float(weights.min())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * weights, 1.0).mean() < mean else (low, middle)
    return np.asarray(np.minimum(high * weights, 1.0))


@dataclass(frozen=True, eq=False)
class Prior:
    """Fitted to runs of other seeds.

    Attributes:
        densities: of the curves.
        tables: by bucket of progress, what those runs say of it.
    """

    densities: tuple[float, ...]
    tables: dict[int, list[Evidence]]

    def needs(self, bucket: int) -> Array:
        """(layers, heads) mean over the runs, as a public table gives them."""
        return np.asarray(np.mean([each.needs for each in self.tables[bucket]], axis=0))

    def norms(self, bucket: int) -> Array:
        return np.asarray(np.mean([each.norms for each in self.tables[bucket]], axis=0))

    def given(self, method: str, bucket: int, work: float, tail_work: float, own: Array) -> Array:
        """(layers, heads) densities at a mean `work` of an evaluation, of which each head's tail takes `tail_work`.

        Args:
            own: (layers, heads) needs of the judged evaluation, for the methods that know them.
        """
        needs = own if method in OWN else self.needs(bucket)
        if method in (PROPORTION, OWN_PROPORTION, POWER):
            power = self.power(work - tail_work) if method == POWER else 1.0
            return in_proportion(needs**power, work - tail_work)
        if method in (ABSOLUTE, OWN_ABSOLUTE):
            squared = self.curve(needs, absolute=True)
        elif method in (CURVE, NORMED):
            squared = self.curve(needs, absolute=False)
        else:
            squared = self.curve(np.full(needs.shape, np.exp(np.log(needs).mean())), absolute=False)
        norms = self.norms(bucket) if method in (NORMED, NORMS) else np.ones(needs.shape)
        squared = squared * norms[..., None]
        # The solver's curves fall.
        squared = np.minimum.accumulate(squared, axis=-1)
        table = CurveTable(self.densities, squared[None], norms[None], np.full((1, *needs.shape), tail_work))
        return np.asarray(least_error(table, work).density[0])

    def power(self, mean: float) -> float:
        """The exponent of `EXPONENTS` under which the runs' own curves predict the least squared error in all."""

        def lost(power: float) -> float:
            total = 0.0
            for bucket, each in self.tables.items():
                density = in_proportion(self.needs(bucket) ** power, mean)
                total += sum(errors_at(self.densities, one.squared, density).sum() for one in each)
            return total

        return min(EXPONENTS, key=lost)

    def curve(self, needs: Array, *, absolute: bool) -> Array:
        """(layers, heads, points) squared errors, relative or absolute, from needs: at every density their logarithm is
        a linear function of the need's, fitted by least squares to all heads, layers, steps and runs."""
        every = [one for each in self.tables.values() for one in each]
        x = np.log(np.concatenate([one.needs.ravel() for one in every]))
        errors = [one.squared / (1.0 if absolute else one.norms[..., None]) for one in every]
        y = np.log(np.maximum(np.concatenate([each.reshape(-1, each.shape[-1]) for each in errors]), _TINY))
        slope, level = np.polyfit(x, y, 1)
        return np.asarray(np.exp(level + slope * np.log(needs)[..., None]))


def errors_at(densities: Sequence[float], squared: Array, density: Array) -> Array:
    """(layers, heads) squared errors at given densities: linear between logarithms, down to 0 at density 1."""
    at, points = np.log(np.maximum(density, 1e-6)), np.log(densities)
    found = np.empty(density.shape)
    for cell in np.ndindex(*density.shape):
        logs = np.log(np.maximum(squared[cell], _TINY))
        left = (1.0 - density[cell]) / (1.0 - densities[-1])
        found[cell] = np.exp(np.interp(at[cell], points, logs)) * min(1.0, max(0.0, left))
    return found
