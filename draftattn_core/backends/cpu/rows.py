"""Calls of 32 bits: gathered keys, one matrix product each way. Skipped blocks cost nothing.

The tail is computed before, for several query blocks at once, and enters each row's softmax as one more column.

Memory beside the inputs, per thread: float32 Q, K, V, tail and output of one head, gathered copies of K and V and one
row of scores; never an L x L map. Large gathered batches lose here (page faults and cache misses), a Python loop over
rows does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...geometry.blocks import statistics_dtype
from ...geometry.layout import BlockTable
from ..request import AttendRequest, new_output
from .fused import attend_heads as attend_fused
from .fused import fused_serves
from .skipped import skipped, tail_of
from .threads import share_out

# Columns in front of the scores of kept tokens, the first of them the tail's; a cache line of float32, so that the
# others stay aligned.
_FRONT = 16


@dataclass
class _Buffers:
    """Reused storage of one thread: all blocks of one head, the gathered columns of one row, scores and weights."""

    keys: Tensor
    values: Tensor
    kept_keys: Tensor
    kept_values: Tensor
    scores: Tensor
    weights: Tensor

    @classmethod
    def allocate(cls, request: AttendRequest) -> _Buffers:
        table, dim = request.tables.k, request.q.shape[-1]
        dtype = statistics_dtype(request.q)
        blocks = (table.total, table.size, dim)
        columns = table.total * table.size
        new = request.q.new_empty
        return cls(
            keys=request.q.new_zeros(blocks, dtype=dtype),
            values=request.q.new_zeros(blocks, dtype=dtype),
            kept_keys=new((columns, dim), dtype=dtype),
            kept_values=new((columns, dim), dtype=dtype),
            scores=new(request.tables.q.size * (_FRONT + columns), dtype=dtype),
            weights=new(request.tables.q.size * (_FRONT + columns), dtype=dtype),
        )


def _fill(blocks: Tensor, x: Tensor, perm: Tensor, table: BlockTable) -> None:
    """Tokens of one head x (L, D) into its blocks (g, size, D); slots past the end of a short block stay zero."""
    video = table.bounds[table.video]
    flat = blocks.view(-1, blocks.shape[-1])
    flat[:video] = x.index_select(0, perm[:video])
    extra = len(perm) - video
    if extra:
        start = table.video * table.size
        flat[start : start + extra] = x.index_select(0, perm[video:])


def _column_bias(request: AttendRequest, batch: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Bias of every key slot (k blocks, size): -inf on empty slots, the key bias on extra tokens.

    Also the first block that needs it: blocks before it are full video blocks, whose bias is zero.
    """
    table, layout = request.tables.k, request.tables.layout
    counts = table.counts[:, None]
    slots = torch.arange(table.size, device=request.q.device)
    bias = torch.zeros(table.total, table.size, dtype=dtype, device=request.q.device)
    bias.masked_fill_(slots >= counts, -torch.inf)
    if request.key_bias is not None:
        row = request.key_bias[batch if request.key_bias.shape[0] > 1 else 0]
        start = table.video * table.size
        bias.view(-1)[start : start + layout.extra] = row.to(dtype)
    short = layout.grid.tokens % table.size != 0
    return bias, table.video - 1 if short else table.video


def attend_rows(request: AttendRequest) -> Tensor:
    """Output (B, H, L, D); softmax in float32 (float64 for float64 inputs) whatever the input dtype.

    Heads are shared out among threads. Products of calls in 16 bits are those of dense attention (`fused`).
    """
    out = new_output(request.q)
    heads = attend_fused if fused_serves(request) else _attend_heads
    share_out(partial(heads, request, out), request.q.shape[0] * request.q.shape[1])
    return out


def _attend_heads(request: AttendRequest, out: Tensor, indices: range) -> None:
    """Write the output of some of the B * H heads."""
    tables = request.tables
    video = tables.q.bounds[tables.q.video]
    buffers = _Buffers.allocate(request)
    for index in indices:
        batch, head = divmod(index, request.q.shape[1])
        _fill(buffers.keys, request.k[batch, head], tables.perm, tables.k)
        _fill(buffers.values, request.v[batch, head], tables.perm, tables.k)
        tail, keep = tail_of(request, batch, head), request.keep[batch, head]
        queries = request.q[batch, head].index_select(0, tables.perm).to(buffers.keys.dtype).mul_(request.scale)
        lost = None
        if tail is not None:
            of_video = keep[: tables.q.video, : tables.k.video]
            dtype = queries.dtype
            lost = skipped(queries[:video], of_video, tables.q.size, tail, products=dtype, columns=_FRONT)
        slots, first_biased = _column_bias(request, batch, buffers.keys.dtype)
        results = torch.empty_like(queries)
        # Counted for all rows at once: each question to a tensor costs a row some microseconds.
        counts, biased = keep.sum(1).tolist(), keep[:, first_biased:].sum(1).tolist()
        for row, kept in enumerate(torch.split(keep.nonzero()[:, 1], counts)):
            part = slice(tables.q.bounds[row], tables.q.bounds[row + 1])
            bias = slots[kept[-biased[row] :]].view(-1) if biased[row] else None
            # Rows of extra tokens skip nothing.
            given = None if lost is None or row >= tables.q.video else (lost[0][part], lost[1][part])
            _attend_row(queries[part], kept, buffers, bias, given, results[part])
        out[batch, head].index_copy_(0, tables.perm, results.to(out.dtype))


def _attend_row(
    queries: Tensor,
    kept: Tensor,
    buffers: _Buffers,
    bias: Tensor | None,
    lost: tuple[Tensor, Tensor] | None,
    out: Tensor,
) -> None:
    """Write the output (n, D) of one query block: queries (n, D) scaled, `kept` ascending block indices.

    Args:
        bias: of the last columns, as many as need one.
        lost: (n, D) and (n, _FRONT), what `skipped` found for these rows.
    """
    (blocks,), (_, size, dim) = kept.shape, buffers.keys.shape
    (rows, _), front, columns = queries.shape, 0 if lost is None else _FRONT, blocks * size
    keys, values = buffers.kept_keys[:columns], buffers.kept_values[:columns]
    torch.index_select(buffers.keys, 0, kept, out=keys.view(blocks, size, dim))
    torch.index_select(buffers.values, 0, kept, out=values.view(blocks, size, dim))
    shape = rows, front + columns
    scores, weights = buffers.scores[: rows * shape[1]].view(shape), buffers.weights[: rows * shape[1]].view(shape)
    torch.mm(queries, keys.t(), out=scores[:, front:])
    if bias is not None:
        scores[:, shape[1] - bias.shape[0] :] += bias
    if lost is None:
        torch.softmax(scores, 1, out=weights)
        torch.mm(weights, values, out=out)
        return
    # The tail is one more column: its logarithm is a score, its own attention the value.
    scores[:, :front] = lost[1]
    torch.softmax(scores, 1, out=weights)
    torch.mm(weights[:, front:], values, out=out)
    out.addcmul_(weights[:, :1], lost[0])
