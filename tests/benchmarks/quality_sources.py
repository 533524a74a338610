"""Calls and rows that the tests of the quality bench share."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.quality.rows import Row, all_rows
from benchmarks.quality.selection import Source
from draftattention.draftattn_core import TokenGrid
from draftattention.draftattn_core.geometry.layout import build_tables

GRID = TokenGrid(6, 16, 21)  # 2,016 tokens: the last block of 64 and of 128 is short


def qkv(grid: TokenGrid = GRID, heads: int = 2, dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth over the grid, so that blocks differ."""
    generator = torch.Generator().manual_seed(3)
    shape = (1, heads * dim, *grid.as_tuple())
    coarse = torch.randn((3, heads * dim, 3, 4, 4), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=grid.as_tuple(), mode="trilinear")
    noisy = 2 * smooth + 0.3 * torch.randn((3, *shape[1:]), generator=generator)
    q, k, v = noisy.view(3, 1, heads, dim, -1).transpose(-1, -2)
    return q, k, v


def source_of(row: Row) -> Source:
    return Source(*qkv(), build_tables(row.layout(GRID)))


def row_named(name: str) -> Row:
    return next(row for row in all_rows() if row.name == name)
