"""CPU: one query block at a time, gathered keys, one matrix product each way. Skipped blocks cost nothing.

Memory beside the inputs: float32 K and V of one head, their gathered copies and one row of scores, all reused; never
an L x L map. Large gathered batches lose here (page faults and cache misses), a Python loop over rows does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks import statistics_dtype
from ..layout import BlockTable
from .request import AttendRequest, new_output


@dataclass
class _Buffers:
    """Reused storage of one call: all blocks of one head, the gathered columns of one row, scores and weights."""

    keys: Tensor
    values: Tensor
    kept_keys: Tensor
    kept_values: Tensor
    scores: Tensor
    weights: Tensor

    @classmethod
    def allocate(cls, request: AttendRequest, pooled: int) -> _Buffers:
        table, dim = request.tables.k, request.q.shape[-1]
        dtype = statistics_dtype(request.q)
        blocks = (table.total, table.size, dim)
        columns = pooled + table.total * table.size
        new = request.q.new_empty
        return cls(
            keys=request.q.new_zeros(blocks, dtype=dtype),
            values=request.q.new_zeros(blocks, dtype=dtype),
            kept_keys=new((columns, dim), dtype=dtype),
            kept_values=new((columns, dim), dtype=dtype),
            scores=new(request.tables.q.size * columns, dtype=dtype),
            weights=new(request.tables.q.size * columns, dtype=dtype),
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
    """Output (B, H, L, D); arithmetic in float32 (float64 for float64 inputs) whatever the input dtype."""
    q, tables, tail = request.q, request.tables, request.tail
    table, dim = tables.k, q.shape[-1]
    pooled = table.video if tail is not None else 0
    buffers = _Buffers.allocate(request, pooled)
    dtype = buffers.keys.dtype
    out = new_output(q)
    for batch in range(q.shape[0]):
        bias, first_biased = _column_bias(request, batch, dtype)
        for head in range(q.shape[1]):
            _fill(buffers.keys, request.k[batch, head], tables.perm, table)
            _fill(buffers.values, request.v[batch, head], tables.perm, table)
            if tail is not None:
                buffers.kept_keys[:pooled] = tail.k_mean[batch, head]
                buffers.kept_values[:pooled] = tail.v_mean[batch, head]
            keep = request.keep[batch, head]
            for row, kept in enumerate(torch.split(keep.nonzero()[:, 1], keep.sum(1).tolist())):
                tokens = tables.perm[tables.q.bounds[row] : tables.q.bounds[row + 1]]
                queries = q[batch, head].index_select(0, tokens).to(dtype) * request.scale
                columns = pooled + len(kept) * table.size
                for gathered, blocks in (
                    (buffers.kept_keys, buffers.keys),
                    (buffers.kept_values, buffers.values),
                ):
                    torch.index_select(blocks, 0, kept, out=gathered[pooled:columns].view(len(kept), table.size, dim))
                scores = buffers.scores[: len(tokens) * columns].view(len(tokens), columns)
                weights = buffers.weights[: len(tokens) * columns].view(len(tokens), columns)
                torch.mm(queries, buffers.kept_keys[:columns].t(), out=scores)
                biased = kept[kept >= first_biased]
                if len(biased):
                    scores[:, columns - len(biased) * table.size :] += bias[biased].view(-1)
                if tail is not None:
                    scores[:, :pooled] += tail.log_count[head]
                    scores[:, :pooled].index_fill_(1, kept[kept < pooled], -torch.inf)
                torch.softmax(scores, 1, out=weights)
                result = torch.mm(weights, buffers.kept_values[:columns])
                if tail is not None and tail.cov is not None:
                    skipped = weights[:, :pooled]
                    result.addcmul_(skipped.sum(1, keepdim=True), torch.mm(queries, tail.cov[batch, head]))
                    if tail.u is not None and tail.w is not None:
                        for rank in range(tail.ranks):
                            along = torch.mm(queries, tail.u[batch, head, :, rank].t())
                            result.addmm_(skipped * along, tail.w[batch, head, :, rank])
                out[batch, head].index_copy_(0, tokens, result.to(q.dtype))
    return out
