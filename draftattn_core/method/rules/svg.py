"""Sparse VideoGen (arXiv 2502.01776): each head is spatial or temporal, found out from a few rows of every call.

Spatial heads attend to near frames, temporal heads to the same place in all frames. Both are one band along the
diagonal: temporal heads get their tokens in place-major order (place times frames plus frame), where tokens of one
place are neighbours. What falls into the first frame's worth of tokens of a head's order is kept as well, as in the
released code (for temporal heads these are the first places, not the first frame).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...geometry.blocks import head_chunks, statistics_dtype
from ...geometry.layout import BlockTable, LayoutTables
from ..calibatt.repetition import host_key_bias
from .call import HeadOrder, RuleCall, whole_map
from .rule import Rule

SAMPLED_ROWS = 64
# The masks that classify heads are made of blocks of this size, whatever the blocks of the call.
_PROFILE_BLOCK = 128


def check_order(tables: LayoutTables) -> None:
    """Raises ValueError unless tokens come frame by frame: the bands mean nothing in another order."""
    if tables.layout.order != "raster":
        raise ValueError(
            f"Sparse VideoGen needs the raster order, the layout has {tables.layout.order!r}: pass order='raster'"
        )


def place_major_order(tables: LayoutTables) -> Tensor:
    """(L,) int64 for `HeadOrder.source`: the video's tokens place by place, all frames of a place together."""
    check_order(tables)

    def make() -> Tensor:
        grid, before = tables.layout.grid, tables.layout.extra_before
        source = torch.arange(tables.layout.tokens)
        video = source[before : before + grid.tokens].view(grid.t, grid.frame_tokens).t().flatten()
        source[before : before + grid.tokens] = video.clone()
        return source.to(tables.perm.device)

    return tables.constant("place-major order", make)


def band_width(density: float, tables: LayoutTables) -> int:
    """Half the width of the band in tokens, a multiple of the key block, for a density of the whole call.

    The published formula: with s' = density - 2 extra / L the width is L (1 - sqrt(1 - s')). The first frame, which is
    kept besides, is not counted, and the width is rounded up: calls come out denser than asked.
    """
    tokens, block = tables.layout.tokens, tables.k.size
    share = min(1.0, max(0.0, density - 2 * tables.layout.extra / tokens))
    return math.ceil(tokens * (1 - math.sqrt(1 - share)) / block) * block


def _spans(table: BlockTable) -> tuple[Tensor, Tensor]:
    """First and last position of every video block."""
    return table.starts[: table.video], table.starts[1 : table.video + 1] - 1


def band(tables: LayoutTables, width: int) -> Tensor:
    """(R, C) bool: pairs with two tokens at most `width` positions apart, and the first frame's worth of keys.

    A token mask would cut through some of these blocks; they are kept whole, as they are computed in any case.
    """

    def make() -> Tensor:
        (q_first, q_last), (k_first, k_last) = _spans(tables.q), _spans(tables.k)
        apart = torch.maximum(q_first.unsqueeze(1) - k_last, k_first - q_last.unsqueeze(1))
        return (apart <= width) | (k_first < tables.layout.grid.frame_tokens)

    return tables.constant(("band", width), make)


def profile_masks(tables: LayoutTables, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What a spatial and a temporal head would see from some video tokens: (rows, L) bool each, host order.

    In blocks of 128 tokens of the head's own order: block distance below two frames' worth (at least the block itself),
    or a key among the first frame's worth of tokens. Extra tokens are seen by all.

    Args:
        rows: (rows,) int64 video tokens, numbered without the extra tokens before them.
    """
    grid, before = tables.layout.grid, tables.layout.extra_before
    reach = max(1, 2 * grid.frame_tokens // _PROFILE_BLOCK)
    token = torch.arange(grid.tokens, device=rows.device)
    masks = []
    for temporal in (False, True):
        place = token % grid.frame_tokens * grid.t + token // grid.frame_tokens if temporal else token
        block = place // _PROFILE_BLOCK
        near = (block[rows].unsqueeze(1) - block).abs() < reach
        mask = torch.ones(len(rows), tables.layout.tokens, dtype=torch.bool, device=rows.device)
        mask[:, before : before + grid.tokens] = near | (place < grid.frame_tokens)
        masks.append(mask)
    return masks[0], masks[1]


def profile_errors(
    q: Tensor, k: Tensor, v: Tensor, tables: LayoutTables, scale: float, rows: Tensor, key_bias: Tensor | None = None
) -> Tensor:
    """Mean squared error of the sampled rows if a head were spatial, and if it were temporal: (2, B, H).

    Against full attention of these rows, mean over rows and channels, in float32 (float64 for float64 inputs).

    Args:
        q, k, v: (B, H, L, D) in the host's token order.
        rows: (rows,) int64 video tokens, numbered without the extra tokens before them.
    """
    masks = profile_masks(tables, rows)
    dtype = statistics_dtype(q)
    bias = host_key_bias(tables, key_bias, dtype)
    found = []
    for part in head_chunks(q):
        sampled = q[:, part].index_select(2, rows + tables.layout.extra_before).to(dtype) * scale
        logits = torch.matmul(sampled, k[:, part].to(dtype).transpose(-1, -2))
        if bias is not None:
            logits += bias
        values = v[:, part].to(dtype)
        full = torch.matmul(logits.softmax(-1), values)
        as_kind = [torch.matmul(logits.masked_fill(~mask, -torch.inf).softmax(-1), values) for mask in masks]
        found.append(torch.stack([(out - full).square().mean((2, 3)) for out in as_kind]))
    return torch.cat(found, dim=2)


def sampled_rows(call: RuleCall) -> Tensor:
    """(rows,) int64 video tokens, drawn anew for each step and layer, the same for the same place in a run.

    The released code draws from the first 10,000 tokens whatever the length; here all video tokens have their chance.
    """
    tokens = call.tables.layout.grid.tokens
    at = (0, 0) if call.position is None else (call.position.step, call.position.layer)

    def make() -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * at[0] + at[1])
        return torch.randint(tokens, (SAMPLED_ROWS,), generator=generator).to(call.q.device)

    return call.tables.constant(("svg rows", *at), make)


def head_order(call: RuleCall) -> HeadOrder:
    """The order of the call's heads: place-major for those that lose less as temporal heads; a tie is spatial."""
    source = place_major_order(call.tables)
    rows = sampled_rows(call)
    spatial, temporal = profile_errors(call.q, call.k, call.v, call.tables, call.scale, rows, call.key_bias)
    return HeadOrder(source, temporal < spatial)


def select(call: RuleCall) -> Tensor:
    """The band of each head's density; the same for spatial and temporal heads, each in its own order.

    To be computed on the call reordered by `head_order`.
    """
    check_order(call.tables)
    widths = [band_width(density, call.tables) for density in call.heads.densities]
    keep = torch.stack([band(call.tables, width) for width in widths])
    return whole_map(keep.expand(call.q.shape[0], -1, -1, -1), call.tables)


RULE = Rule(select, order=head_order)
