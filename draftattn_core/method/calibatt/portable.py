"""Portable scores: how much attention a head pays to a displacement, a few kilobytes that rank blocks on any grid.

A set of displacements (`displacement.py`) suits grids of whole tiles; elsewhere blocks lie between its cells. Here a
head keeps the mean energy of each cell of a coarse volume of displacements, block pairs count towards the eight cells
around them, and on another grid a pair gets the value between the eight cells around its own displacement. Blocks are
then ranked by it as by a draft, at whatever density is asked for. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...geometry.grid import TokenGrid
from ...geometry.layout import LayoutTables
from ..rules.places import on_the_host
from .displacement import block_centres, default_cell

Cell = tuple[float, float, float]
Reach = tuple[int, int, int]
# Below any energy that float16 can tell from another, and still a number to rank by.
_LEAST_ENERGY = 1e-12


def reach_of(grid: TokenGrid, cell: Cell) -> Reach:
    """The reach that covers every displacement on a grid."""
    t, h, w = (max(1, math.ceil((size - 1) / one)) for size, one in zip(grid.as_tuple(), cell))
    return t, h, w


def _corners(tables: LayoutTables, cell: Cell, reach: Reach) -> Iterator[tuple[Tensor, Tensor]]:
    """The eight cells around each block pair: flat index (R, C) int64 and weight (R, C) float64, on the CPU.

    Displacements beyond the reach count as the farthest ones.
    """
    limit = torch.tensor(reach, dtype=torch.float64)
    tables = on_the_host(tables)
    q, k = block_centres(tables, tables.q), block_centres(tables, tables.k)
    place = (k.unsqueeze(0) - q.unsqueeze(1)) / torch.tensor(cell, dtype=torch.float64)
    place = place.clamp(-limit, limit) + limit
    low = place.floor().clamp_max(2 * limit - 1)
    rest = place - low
    for corner in range(8):
        upper = torch.tensor([bool(corner & 4), bool(corner & 2), bool(corner & 1)])
        t, h, w = (low.long() + upper).unbind(-1)
        index = (t * (2 * reach[1] + 1) + h) * (2 * reach[2] + 1) + w
        yield index, torch.where(upper, rest, 1 - rest).prod(-1)


@dataclass
class PortableScores:
    """Energies by displacement, summed over prompts, steps and grids as they come.

    Attributes:
        cell: frames, rows and columns of a cell.
        reach: cells on either side of the middle along each axis.
        sums: (H, 2 reach_t + 1, 2 reach_h + 1, 2 reach_w + 1) float64 on the CPU, energies of all pairs counted.
        pairs: the same without heads, how many pairs were counted.
        grid: grid of the calls they were made from; the last one's if there were several.
    """

    cell: Cell
    reach: Reach
    sums: Tensor
    pairs: Tensor
    grid: TokenGrid

    @classmethod
    def for_layout(cls, heads: int, tables: LayoutTables, cell: Cell | None = None) -> PortableScores:
        """Empty scores that tell apart every displacement of a layout."""
        cell = default_cell(tables) if cell is None else cell
        reach = reach_of(tables.layout.grid, cell)
        shape = tuple(2 * r + 1 for r in reach)
        sums, pairs = torch.zeros(heads, *shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        return cls(cell, reach, sums, pairs, tables.layout.grid)

    def add(self, energy: Tensor, tables: LayoutTables) -> None:
        """Count the energies (B, H, R, C or more) of the video blocks of a call."""
        total = energy[..., : tables.k.video].double().sum(0).cpu()
        for index, weight in _corners(tables, self.cell, self.reach):
            self.sums.view(len(total), -1).index_add_(1, index.flatten(), (total * weight).flatten(1))
            self.pairs.view(-1).index_add_(0, index.flatten(), weight.flatten() * energy.shape[0])
        self.grid = tables.layout.grid

    def volume(self) -> PortableVolume:
        """What is kept of the scores: half a float per head and cell."""
        mean = self.sums / self.pairs.clamp_min(1e-9)
        return PortableVolume(
            self.cell, mean.clamp_min(_LEAST_ENERGY).log().to(torch.float16), self.pairs > 0, self.grid
        )


@dataclass(frozen=True)
class PortableVolume:
    """Portable scores of one layer as they are stored and used.

    Attributes:
        cell: frames, rows and columns of a cell, in tokens of `grid`.
        log_energy: (H, 2 reach_t + 1, 2 reach_h + 1, 2 reach_w + 1) float16 on the CPU.
        seen: the same without heads, bool: cells that pairs were counted in.
        grid: what they were made from.
    """

    cell: Cell
    log_energy: Tensor
    seen: Tensor
    grid: TokenGrid

    @property
    def heads(self) -> int:
        return self.log_energy.shape[0]

    def of_heads(self, part: slice) -> PortableVolume:
        """The same for some of the heads."""
        return replace(self, log_energy=self.log_energy[part])

    @property
    def bytes(self) -> int:
        return 2 * self.log_energy.numel() + -(-self.seen.numel() // 8)

    @property
    def reach(self) -> Reach:
        t, h, w = (size // 2 for size in self.seen.shape)
        return t, h, w

    def scores(self, tables: LayoutTables, *, stretch: bool = True) -> Tensor:
        """Scores (1, H, R, C) float32 of the video blocks of any layout, on its device, to be ranked within each row.

        A pair whose cells were never seen scores below all others.

        Args:
            stretch: whether a displacement is a share of the grid (things grow with the resolution) or a number of
                tokens.
        """
        cell = self.cell
        if stretch:
            t, h, w = (c * new / old for c, new, old in zip(cell, tables.layout.grid.as_tuple(), self.grid.as_tuple()))
            cell = t, h, w
        energy = self.log_energy.double().exp().flatten(1) * self.seen.flatten()
        sums = torch.zeros(len(energy), tables.q.video, tables.k.video, dtype=torch.float64)
        weights = torch.zeros(tables.q.video, tables.k.video, dtype=torch.float64)
        for index, weight in _corners(tables, cell, self.reach):
            sums += energy[:, index] * weight
            weights += self.seen.flatten()[index] * weight
        mean = sums / weights.clamp_min(1e-9)
        return mean.clamp_min(_LEAST_ENERGY).log().float().unsqueeze(0).to(tables.perm.device)
