"""Budgets as a run used them: what they rest on, what they promised and what was measured of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SpentBudgets:
    """Budgets as a run used them, from `progress` on until the next ones.

    Attributes:
        progress: of the first call under them.
        source: what they rest on: "profile" or "this run".
        before: mean density that every head would have had.
        after: by layer, the density of each head; 1 throughout a dense layer.
        promised: relative L2 error of the attention outputs of all these layers together, as predicted; under
            `max_error` the largest that is promised for a layer.
        worst_layer: the largest predicted error of a single layer.
        uniform: as `promised`, had every head the density `before`; None where `max_error` decides.
        measured, measured_worst: the same two, interpolated from the next measurement of these layers; None until then.
    """

    progress: float
    source: str
    before: float
    after: dict[int, tuple[float, ...]]
    promised: float
    worst_layer: float
    uniform: float | None
    measured: float | None = None
    measured_worst: float | None = None

    @property
    def mean(self) -> float:
        """Mean density over layers and heads."""
        heads = [density for layer in self.after.values() for density in layer]
        return sum(heads) / len(heads)
