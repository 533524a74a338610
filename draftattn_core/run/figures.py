"""Figures: what was measured about one expert of a model, head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..method.policy import TailName
from .budgets import CurveTable
from .fingerprint import ProfileError
from .schedule import REACHED

BUCKETS = 3


def bucket_of(progress: float) -> int:
    """Bucket of a progress 0..1, 0 the noisiest: edges at (i / 3)^1.5, finer where heads change most."""
    edges = [(i / BUCKETS) ** 1.5 for i in range(1, BUCKETS)]
    return sum(progress + REACHED >= edge for edge in edges)


@dataclass(frozen=True, eq=False)
class Figures:
    """What was measured about one expert; tensors on the CPU, cells are (buckets, layers, heads).

    Attributes:
        weights: identity of the expert's weights (`weights_identity`), "" if unknown.
        counts: (cells) int32, calls measured; 0 where nothing is known and the other figures mean nothing.
        squared: (cells, points) float32, mean squared error of one output row.
        norms: (cells) float32, mean squared norm of one exact output row.
        worst: (cells, points) float16, largest relative L2 error of a call.
        gains: (cells, points) float16, mean log gain.
        tails: (cells) uint8, index into the tails of the profile's conditions.
    """

    weights: str
    counts: Tensor
    squared: Tensor
    norms: Tensor
    worst: Tensor
    gains: Tensor
    tails: Tensor

    @classmethod
    def empty(cls, weights: str, layers: int, heads: int, points: int) -> Figures:
        made = {
            name: torch.zeros(shape, dtype=dtype)
            for name, (shape, dtype) in figure_forms(layers, heads, points).items()
        }
        return cls(weights, **made)

    def tensors(self) -> dict[str, Tensor]:
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "weights"}

    @property
    def measured(self) -> Tensor:
        """(cells) bool."""
        return self.counts > 0

    def merged(self, other: Figures) -> Figures:
        """Both together: means weighted by calls, the worse of the worst.

        Where the two chose different tails, the figures of one say nothing about the other: the tail measured more
        often stays, with its figures alone (the cheaper one if equally often).
        """
        a, b = self.counts, other.counts
        same = (self.tails == other.tails) & (a > 0) & (b > 0)
        ours = (a > b) | ((a == b) & (self.tails <= other.tails))
        share = b.double() / (a + b).clamp_min(1).double()

        def chosen(which: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return torch.where(which.view(*which.shape, *[1] * (x.dim() - which.dim())), x, y)

        def mean(x: Tensor, y: Tensor) -> Tensor:
            weight = share.view(*share.shape, *[1] * (x.dim() - share.dim()))
            both = (x.double() + (y.double() - x.double()) * weight).to(x.dtype)
            return chosen(same, both, chosen(ours, x, y))

        return Figures(
            self.weights,
            torch.where(same, a + b, torch.maximum(a, b)),
            mean(self.squared, other.squared),
            mean(self.norms, other.norms),
            chosen(same, torch.maximum(self.worst, other.worst), chosen(ours, self.worst, other.worst)),
            mean(self.gains, other.gains),
            torch.where(ours, self.tails, other.tails),
        )

    def filled(self) -> Figures:
        """With something for every cell, at least one being measured.

        A cell that was not measured takes the figures of the same head in the nearest bucket (the noisier of two). A
        head without any takes the means of its layer's measured heads, else of all measured heads, bucket by bucket.
        """
        known = self.measured
        whole = {name: table.clone() for name, table in self.tensors().items()}
        for bucket in range(BUCKETS):
            missing = ~known[bucket]
            for other in sorted(range(BUCKETS), key=lambda other: (abs(other - bucket), other)):
                take = missing & known[other]
                missing = missing & ~take
                for name, table in self.tensors().items():
                    whole[name][bucket][take] = table[other][take]
        ever = known.any(0)
        for layer in range(ever.shape[0]):
            if bool(ever[layer].all()):
                continue
            sources = torch.zeros_like(ever)
            sources[layer] = ever[layer]
            sources = sources if bool(sources.any()) else ever
            for name, table in whole.items():
                if name == "tails":
                    typical = table[:, sources].mode(1).values
                else:
                    typical = table[:, sources].double().mean(1).to(table.dtype)
                table[:, layer, ~ever[layer]] = typical.unsqueeze(1)
        return Figures(self.weights, **whole)


def figure_forms(layers: int, heads: int, points: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor of `Figures`."""
    cells = (BUCKETS, layers, heads)
    return {
        "counts": (cells, torch.int32),
        "squared": ((*cells, points), torch.float32),
        "norms": (cells, torch.float32),
        "worst": ((*cells, points), torch.float16),
        "gains": ((*cells, points), torch.float16),
        "tails": (cells, torch.uint8),
    }


@dataclass(frozen=True, eq=False)
class CompleteFigures:
    """Figures with something for every cell, as a run uses them.

    Attributes:
        figures: filled in (`Figures.filled`).
        densities: (points,) of their curves.
        tails: what the figures' tails count through.
    """

    figures: Figures
    densities: tuple[float, ...]
    tails: tuple[TailName, ...]

    def table(self, tail_work: Mapping[TailName, float], *, worst: bool = False) -> CurveTable:
        """What the solver needs.

        Args:
            tail_work: work of each tail as a share of a dense call's, on the grid to be served.
            worst: take the worst call's relative errors in place of the mean, for a promise that most calls are to
                keep (`within_error`): of the mean, about half of them break it.
        """
        squared = self.figures.squared.double()
        if worst:
            squared = self.figures.worst.double().square() * self.figures.norms.double().unsqueeze(-1)
        works = np.array([tail_work[name] for name in self.tails], dtype=np.float64)
        return CurveTable(
            self.densities,
            squared.numpy(),
            self.figures.norms.double().numpy(),
            works[self.figures.tails.long().numpy()],
        )

    def heads(
        self, bucket: int, layer: int, densities: Sequence[float], first_head: int = 0
    ) -> tuple[tuple[TailName, ...], tuple[float, ...]]:
        """Tail and log gain of the heads from the global number `first_head` on, one for each of `densities`.

        Gains are interpolated along the logarithm of the density.

        Raises:
            ProfileError: if there are fewer heads.
        """
        some = slice(first_head, first_head + len(densities))
        chosen = self.figures.tails[bucket, layer, some].tolist()
        if len(chosen) != len(densities):
            raise ProfileError(
                f"heads {some.start} to {some.stop - 1} were asked of a profile of {self.figures.tails.shape[2]}: "
                "choose a profile of this model"
            )
        gains = self.figures.gains[bucket, layer, some].double().numpy()
        at, points = np.log(np.maximum(densities, 1e-6)), np.log(self.densities)
        return (
            tuple(self.tails[index] for index in chosen),
            tuple(float(np.interp(x, points, row)) for x, row in zip(at, gains, strict=True)),
        )
