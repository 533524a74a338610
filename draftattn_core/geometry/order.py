"""Orders: permutations of a token grid in which every run of `block` tokens is a compact patch of the video.

`tile_order` is the one the pack ships: frames are grouped by p_t and rows by p_h (balanced group sizes), each group
is walked column by column, and the walk turns around at each end, so that a run of tokens stays one connected patch
even where it crosses from one group into the next. Nothing is padded: cut the walk every `block` tokens and every
block is full but the last. Where p_t, p_h and p_w divide the grid the blocks are exactly p_t x p_h x p_w tiles;
with the tile 1x8x16 they are the regions of DraftAttention (arXiv 2505.14708, section 4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .grid import TokenGrid

Tile = tuple[int, int, int]

ORDERS = ("tile", "hilbert", "raster")


def balanced_groups(size: int, target: int) -> list[tuple[int, int]]:
    """Cut range(size) into round(size / target) consecutive groups whose sizes differ by at most one."""
    count = max(1, min(size, round(size / target)))
    edges = [i * size // count for i in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def raster_order(grid: TokenGrid) -> Tensor:
    """The host's own order: (N,) int64 0..N-1. Runs of tokens are 1-D strips."""
    return torch.arange(grid.tokens)


def tile_order(grid: TokenGrid, tile: Tile) -> Tensor:
    """Strip walk in groups of tile[0] frames and tile[1] rows; (N,) int64, position in the order -> host token.

    tile[2] is what a block's width comes out at (block size / (p_t * p_h)); the walk itself does not need it.
    """
    p_t, p_h, _ = tile
    host = torch.arange(grid.tokens).view(grid.t, grid.h, grid.w)
    row_groups = balanced_groups(grid.h, p_h)
    parts: list[Tensor] = []
    leftwards = False
    for t_index, (t0, t1) in enumerate(balanced_groups(grid.t, p_t)):
        upwards = t_index % 2 == 1
        for h0, h1 in reversed(row_groups) if upwards else row_groups:
            columns = host[t0:t1, h0:h1].permute(2, 0, 1)
            # Columns run the way the groups do: a block that turns around mid-column still meets the next group.
            columns = columns.flip(2) if upwards else columns
            parts.append((columns.flip(0) if leftwards else columns).reshape(-1))
            leftwards = not leftwards
    return torch.cat(parts)


def hilbert_order(grid: TokenGrid) -> Tensor:
    """3-D Hilbert walk of the smallest power-of-two cube around the grid, tokens outside it left out; (N,) int64.

    J. Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707 (2004), vectorised over tokens.
    """
    bits = max(1, math.ceil(math.log2(max(grid.as_tuple()))))
    t, h, w = torch.meshgrid(torch.arange(grid.t), torch.arange(grid.h), torch.arange(grid.w), indexing="ij")
    axes = [t.reshape(-1).clone(), h.reshape(-1).clone(), w.reshape(-1).clone()]
    q = 1 << (bits - 1)
    while q > 1:
        p = q - 1
        for i in range(3):
            has_bit = (axes[i] & q) != 0
            swap = (axes[0] ^ axes[i]) & p
            first = torch.where(has_bit, axes[0] ^ p, axes[0] ^ swap)
            if i:
                axes[i] = torch.where(has_bit, axes[i], axes[i] ^ swap)
            axes[0] = first
        q >>= 1
    for i in range(1, 3):
        axes[i] = axes[i] ^ axes[i - 1]
    flip = torch.zeros_like(axes[0])
    q = 1 << (bits - 1)
    while q > 1:
        flip = torch.where((axes[2] & q) != 0, flip ^ (q - 1), flip)
        q >>= 1
    axes = [axis ^ flip for axis in axes]
    key = torch.zeros_like(axes[0])
    for bit in reversed(range(bits)):
        for axis in axes:
            key = (key << 1) | ((axis >> bit) & 1)
    return torch.argsort(key)


def make_order(name: str, grid: TokenGrid, tile: Tile) -> Tensor:
    """(N,) int64 permutation by name (`ORDERS`).

    Raises:
        ValueError: for an unknown name.
    """
    if name == "tile":
        return tile_order(grid, tile)
    if name == "hilbert":
        return hilbert_order(grid)
    if name == "raster":
        return raster_order(grid)
    raise ValueError(f"unknown order {name!r}: choose one of {', '.join(ORDERS)}")
