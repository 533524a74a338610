"""What CalibAtt's calibration asks of a call, from one softmax map that is made once and never held.

Block energies (arXiv 2603.05503, equation 5) are sums over the rows of a query block; the likeness of spatial rows
("spatial repetition") compares all rows of a frame that stand in one column. So the map is walked by columns of a
frame: a column's patterns give their Gram matrix, and their sums over key blocks go to the query blocks of their rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...geometry.blocks import statistics_dtype
from ...geometry.layout import LayoutTables
from .energy import block_slots, chunk_bytes_on, key_slot_bias


@dataclass(frozen=True)
class Survey:
    """What one call leaves.

    Attributes:
        energy: (B, H, video q blocks, k blocks) float32 (float64 for float64 inputs), as `Energy.blocks`.
        similarity: (B, H) of the same type, see `row_similarity`.
    """

    energy: Tensor
    similarity: Tensor


@dataclass(frozen=True)
class _Patterns:
    """Patterns of all rows of some columns of a frame, of some heads.

    Attributes:
        heads, columns: slices of the whole call and of the grid; frame: number of the frame.
        weights: (B, h, columns, H, k slots) softmax weights times a factor of their own for each row.
    """

    heads: slice
    frame: int
    columns: slice
    weights: Tensor


def survey(
    q: Tensor,
    k: Tensor,
    tables: LayoutTables,
    scale: float,
    *,
    key_bias: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Survey:
    """Block energies and likeness of spatial rows of a call, for about the price of computing it densely.

    Args:
        q, k: (B, H, L, D) with RoPE applied, in the host's token order.
        key_bias: (B or 1, extra tokens) added to the logits of the extra tokens, or None.
        chunk_bytes: how large the logits of one chunk may be, None for what suits the device; one column of one frame
            of one head is the least.
    """
    layout, grid = tables.layout, tables.layout.grid
    energy = q.new_zeros(*q.shape[:2], tables.q.video, tables.k.total, dtype=statistics_dtype(q))
    grams = _no_grams(q, tables)
    video = tables.inverse[layout.extra_before : layout.extra_before + grid.tokens]
    block = tables.q.of_token[video].view(grid.as_tuple())
    for part in _patterns(q, k, tables, scale, key_bias, chunk_bytes):
        mass = part.weights.view(*part.weights.shape[:-1], tables.k.total, tables.k.size).sum(-1)
        total = mass.sum(-1)
        mass /= total.unsqueeze(-1)
        rows = block[part.frame, :, part.columns].t().flatten()
        energy[:, part.heads].index_add_(2, rows, mass.flatten(2, 3))
        grams[:, part.heads, part.frame] += _gram(part.weights, total)
    energy /= tables.q.counts[: tables.q.video, None]
    return Survey(energy, _likeness(grams))


def row_similarity(
    q: Tensor,
    k: Tensor,
    tables: LayoutTables,
    scale: float,
    *,
    key_bias: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Mean cosine similarity of the patterns of two different spatial rows of one frame: (B, H), float32 or float64.

    Patterns cover all keys of the call, extra tokens included. The mean is over pairs of rows, then over frames; a grid
    of one row gives 0. Only the Gram matrix of a frame's rows is kept, never a pattern. Arguments as for `survey`.
    """
    grams = _no_grams(q, tables)
    if tables.layout.grid.h > 1:
        for part in _patterns(q, k, tables, scale, key_bias, chunk_bytes):
            grams[:, part.heads, part.frame] += _gram(part.weights, part.weights.sum(-1))
    return _likeness(grams)


def _patterns(
    q: Tensor, k: Tensor, tables: LayoutTables, scale: float, key_bias: Tensor | None, chunk_bytes: int | None
) -> Iterator[_Patterns]:
    grid, before = tables.layout.grid, tables.layout.extra_before
    batch, heads, _, dim = q.shape
    dtype = statistics_dtype(q)
    # Blocks before the last video one are full, and nothing weighs on their keys.
    first = (tables.k.video - 1) * tables.k.size
    bias = key_slot_bias(tables, key_bias, dtype).flatten(1)[:, None, None, first:]
    column_bytes = batch * grid.h * tables.k.total * tables.k.size * bias.element_size()
    columns = max(1, chunk_bytes_on(q.device, chunk_bytes) // column_bytes)
    head_step, step = max(1, columns // grid.w), min(columns, grid.w)
    for h in range(0, heads, head_step):
        part = slice(h, min(h + head_step, heads))
        video = q[:, part, before : before + grid.tokens].reshape(batch, -1, *grid.as_tuple(), dim)
        keys = block_slots(k[:, part], tables.perm, tables.k, tables.k.total).flatten(2, 3)
        keys = keys.transpose(-1, -2).contiguous()
        for frame in range(grid.t):
            for start in range(0, grid.w, step):
                some = slice(start, min(start + step, grid.w))
                # The rows of one column side by side.
                rows = video[:, :, frame, :, some].transpose(2, 3).flatten(2, 3).to(dtype)
                logits = torch.matmul(rows * scale, keys)
                logits[..., first:] += bias
                weights = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
                of_columns = weights.view(*rows.shape[:2], -1, grid.h, weights.shape[-1])
                yield _Patterns(part, frame, some, of_columns)


def _no_grams(q: Tensor, tables: LayoutTables) -> Tensor:
    """(B, H, frames, rows, rows) zeros."""
    grid = tables.layout.grid
    return q.new_zeros(*q.shape[:2], grid.t, grid.h, grid.h, dtype=statistics_dtype(q))


def _gram(weights: Tensor, total: Tensor) -> Tensor:
    """(B, h, H, H) inner products of the softmax patterns of rows, summed over columns.

    Args:
        weights: see `_Patterns`; total: (B, h, columns, H) their sums.
    """
    products = torch.matmul(weights, weights.transpose(-1, -2))
    return (products / total.unsqueeze(-1) / total.unsqueeze(-2)).sum(2)


def _likeness(grams: Tensor) -> Tensor:
    """(B, H) mean cosine over the pairs of rows of each frame, then over frames."""
    rows = grams.shape[-1]
    if rows == 1:
        return grams.new_zeros(grams.shape[:2])
    length = grams.diagonal(dim1=-2, dim2=-1).sqrt()
    cosine = grams / (length.unsqueeze(-1) * length.unsqueeze(-2))
    pairs = cosine.sum((-2, -1)) - cosine.diagonal(dim1=-2, dim2=-1).sum(-1)
    return pairs.mean(-1) / (rows * (rows - 1))
