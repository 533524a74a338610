"""Portable masks: per head a set of displacements between blocks, a few kilobytes that hold on any grid.

A block pair is described by how far the centre of the key block lies from that of the query block, in frames, rows
and columns, rounded to cells of the block's own size. A head's mask is the set of displacements it keeps; on another
grid a pair is kept if its displacement is in the set. Between grids of whole tiles that loses nothing; where blocks
are irregular, the scores of `portable.py` serve better. What depends on absolute place (a first frame that everything
looks at) has one flag per head. Ours; CalibAtt's own masks hold on one grid only (arXiv 2603.05503, limitations).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...geometry.layout import BlockTable, LayoutTables
from ..rules.places import on_the_host, token_frames

Reach = tuple[int, int, int]
# Displacements are rounded half away from zero; block centres lie on multiples of 1 / (2 block), never this close.
_ROUNDING = 1e-6


def block_centres(tables: LayoutTables, table: BlockTable) -> Tensor:
    """Mean (frame, row, column) of the tokens of every video block: (blocks, 3) float64, from tables on the CPU."""
    grid = tables.layout.grid
    frame, place = token_frames(tables)
    where = torch.stack([frame, place // grid.w, place % grid.w], -1).double()
    block = table.of_token[: grid.tokens]
    sums = torch.zeros(table.video, 3, dtype=torch.float64).index_add_(0, block, where)
    return sums / block.bincount(minlength=table.video).unsqueeze(-1)


def block_displacements(tables: LayoutTables, cell: tuple[float, float, float]) -> Tensor:
    """Displacement of every key block from every query block in cells: (R, C, 3) int64 on the CPU."""
    tables = on_the_host(tables)
    q, k = block_centres(tables, tables.q), block_centres(tables, tables.k)
    apart = (k.unsqueeze(0) - q.unsqueeze(1)) / torch.tensor(cell, dtype=torch.float64)
    return (apart.sign() * (apart.abs() + 0.5 + _ROUNDING).floor()).long()


def default_cell(tables: LayoutTables) -> tuple[float, float, float]:
    """Frames, rows and columns of one cell: the tile cut down to the smaller of the two blocks.

    In the raster order a block is a run of a row (or of several rows), and so is a cell.
    """
    layout = tables.layout
    size = min(layout.q_block, layout.k_block)
    if layout.order == "raster":
        return 1.0, max(1.0, size / layout.grid.w), float(min(size, layout.grid.w))
    p_t, p_h, _ = layout.tile_shape
    return float(p_t), float(p_h), max(1.0, size / (p_t * p_h))


@dataclass
class DisplacementScores:
    """Sums of a score (energy, or votes for keeping) over the block pairs of each displacement, per head.

    Scores of other prompts, steps and grids may be added, so that a portable mask may rest on several grids.

    Attributes:
        cell: frames, rows and columns of a cell.
        reach: largest displacement in cells along each axis that is told apart; farther ones count as that.
        sums: (H, 2 reach_t + 1, 2 reach_h + 1, 2 reach_w + 1) float64 on the CPU.
        pairs: the same shape without heads: how many block pairs were counted.
        first: (H, 2) float64: score of key blocks in the first frame, seen from query blocks of other frames, and how
            many such pairs were counted.
    """

    cell: tuple[float, float, float]
    reach: Reach
    sums: Tensor
    pairs: Tensor
    first: Tensor

    @classmethod
    def of_reach(cls, heads: int, reach: Reach, cell: tuple[float, float, float]) -> DisplacementScores:
        shape = tuple(2 * r + 1 for r in reach)
        zeros = torch.zeros(heads, *shape, dtype=torch.float64)
        return cls(cell, reach, zeros, torch.zeros(shape, dtype=torch.float64), torch.zeros(heads, 2).double())

    def add(self, scores: Tensor, tables: LayoutTables) -> None:
        """Count scores (B, H, R, C) of the video blocks of a call."""
        index = flat_displacements(tables, self.cell, self.reach)
        total = scores.double().sum(0).cpu()
        self.sums.view(len(total), -1).index_add_(1, index.flatten(), total.flatten(1))
        ones = torch.full((index.numel(),), float(scores.shape[0]), dtype=torch.float64)
        self.pairs.view(-1).index_add_(0, index.flatten(), ones)
        looks_back = _looks_back(tables)
        self.first[:, 0] += (total * looks_back).sum((1, 2))
        self.first[:, 1] += float(looks_back.sum()) * scores.shape[0]

    def mean(self) -> Tensor:
        """Mean score of each displacement, shape of `sums`; 0 where no pair was seen."""
        return self.sums / self.pairs.clamp_min(1.0)


def _looks_back(tables: LayoutTables) -> Tensor:
    """(R, C) bool on the CPU: the key block holds tokens of the first frame, the query block none."""
    tables = on_the_host(tables)
    frame = token_frames(tables)[0]
    queries = torch.zeros(tables.q.video, dtype=torch.bool)
    queries[tables.q.of_token[: len(frame)][frame == 0]] = True
    return ~queries.unsqueeze(1) & tables.first_frame


def flat_displacements(tables: LayoutTables, cell: tuple[float, float, float], reach: Reach) -> Tensor:
    """(R, C) int64 on the CPU: index of each pair's displacement into a flattened volume of that reach."""
    apart = block_displacements(tables, cell)
    limit = torch.tensor(reach)
    t, h, w = (apart.clamp(-limit, limit) + limit).unbind(-1)
    return (t * (2 * reach[1] + 1) + h) * (2 * reach[2] + 1) + w


@dataclass(frozen=True)
class DisplacementMask:
    """Kept displacements of every head.

    Attributes:
        cell: frames, rows and columns of a cell.
        kept: (H, 2 reach_t + 1, 2 reach_h + 1, 2 reach_w + 1) bool on the CPU. Displacements beyond the reach count as
            the farthest ones; the middle, a block itself, is always kept.
        first_frame: (H,) bool on the CPU, heads that keep every key block with tokens of the first frame.
    """

    cell: tuple[float, float, float]
    kept: Tensor
    first_frame: Tensor

    @property
    def heads(self) -> int:
        return self.kept.shape[0]

    def of_heads(self, part: slice) -> DisplacementMask:
        """The same for some of the heads."""
        return DisplacementMask(self.cell, self.kept[part], self.first_frame[part])

    @property
    def reach(self) -> Reach:
        t, h, w = (size // 2 for size in self.kept.shape[1:])
        return t, h, w

    @property
    def bytes(self) -> int:
        """Size when packed, one bit for each displacement and flag."""
        return -(-self.kept.numel() // 8) + -(-self.first_frame.numel() // 8)

    def mask(self, tables: LayoutTables) -> Tensor:
        """The mask (H, R, C) bool of the video blocks of any layout, on its device; no row is empty."""

        def index() -> Tensor:
            return flat_displacements(tables, self.cell, self.reach).to(tables.perm.device)

        place = tables.constant(("displacements", self.cell, self.reach), index)
        kept = self.kept.to(tables.perm.device).flatten(1)[:, place]
        first = self.first_frame.to(tables.perm.device)[:, None, None] & tables.first_frame
        return kept | first | tables.own

    def displacements(self, head: int) -> list[tuple[int, int, int]]:
        """The kept displacements of one head, in cells."""
        found = self.kept[head].nonzero() - torch.tensor(self.reach)
        return [(int(t), int(h), int(w)) for t, h, w in found.tolist()]


def keep_displacements(scores: DisplacementScores, densities: tuple[float, ...]) -> DisplacementMask:
    """Per head the displacements of highest mean score, until their pairs make up its density of all pairs counted.

    A head keeps the whole first frame where its score per pair is better than that of the worst displacement it keeps
    for its density; this comes on top.

    Args:
        densities: share of block pairs, one per head.
    """
    mean, heads = scores.mean().flatten(1), scores.sums.shape[0]
    if len(densities) != heads:
        raise ValueError(f"{len(densities)} densities for {heads} heads: give one per head")
    pairs = scores.pairs.flatten()
    ranked = mean.masked_fill(pairs == 0, -torch.inf)
    middle = pairs.numel() // 2
    ranked[:, middle] = torch.inf
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    before = pairs[order].cumsum(-1) - pairs[order]
    wanted = torch.tensor(densities, dtype=torch.float64).unsqueeze(-1) * pairs.sum()
    chosen = (before < wanted) & (pairs[order] > 0)
    kept = torch.zeros_like(chosen).scatter_(-1, order, chosen)
    kept[:, middle] = True
    worst = mean.masked_fill(~kept | (pairs == 0), torch.inf).amin(-1)
    first = scores.first[:, 0] / scores.first[:, 1].clamp_min(1.0)
    flags = (first > worst) & (scores.first[:, 1] > 0)
    return DisplacementMask(scores.cell, kept.view(heads, *scores.sums.shape[1:]), flags)
