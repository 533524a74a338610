"""Places: our tokens as `sol_attn` takes them, in runs of 64, so that its strips become our compact blocks.

The video comes first in block order, filled up to whole blocks where extra tokens follow: these begin a block of their
own, as in a `Layout`. Places without a token hold zeros, and `lengths` says how many of a block's are filled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...geometry.layout import LayoutTables

BLOCK = 64
HEAD_DIM = 128


def extra_start(tables: LayoutTables) -> int:
    """Place of the first extra token."""
    return tables.k.video * BLOCK


def count(tables: LayoutTables) -> int:
    """Number of places."""
    layout = tables.layout
    return extra_start(tables) + layout.extra if layout.extra else layout.grid.tokens


def into(x: Tensor, tables: LayoutTables) -> Tensor:
    """x (B, h, L, D) in its places: (B * h, places, 1, 128), contiguous, a smaller head filled up with zeros."""
    batch, heads, length, dim = x.shape
    video, places = tables.layout.grid.tokens, count(tables)
    if places == length:
        filled = pad(x.index_select(2, tables.perm), (0, HEAD_DIM - dim))
    else:
        filled = x.new_zeros(batch, heads, places, HEAD_DIM)
        filled[:, :, :video, :dim] = x.index_select(2, tables.perm[:video])
        filled[:, :, extra_start(tables) :, :dim] = x.index_select(2, tables.perm[video:])
    return filled.view(batch * heads, places, 1, HEAD_DIM)


def out_of(filled: Tensor, tables: LayoutTables, batch: int, dim: int) -> Tensor:
    """(B, h, L, D) in the host's order of (B * h, places, 1, 128)."""
    rows = filled.view(batch, -1, filled.shape[1], HEAD_DIM)[..., :dim]
    return rows.index_select(2, tables.constant("kitchen places", lambda: _place_of_token(tables)))


def lengths(tables: LayoutTables) -> Tensor | None:
    """(blocks,) int32 filled places of each block; None where only the last of all is short, which it sees itself."""
    layout = tables.layout
    if not layout.extra or layout.grid.tokens % BLOCK == 0:
        return None
    return tables.constant("kitchen lengths", lambda: tables.k.counts.int())


def _place_of_token(tables: LayoutTables) -> Tensor:
    video, extra = tables.layout.grid.tokens, tables.layout.extra
    device = tables.inverse.device
    places = torch.cat([torch.arange(video, device=device), extra_start(tables) + torch.arange(extra, device=device)])
    return places[tables.inverse]
