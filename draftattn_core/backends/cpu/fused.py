"""Calls of 16 bits: torch's fused attention, which dense attention runs as well, on the gathered keys of a row.

Its products are of 16 bits with sums in float32, which the CPU's matrix units do (AMX, AVX-512 BF16), and scores and
softmax stay in float32 inside. It returns the logarithm of the softmax sum, by which the tail joins a whole head at
once. The tail's own products are of 16 bits in bfloat16 only.

Memory beside the inputs, per thread: K, V, their gathered copies, Q and output of one head in 16 bits, with a tail Q,
tail and output in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..request import AttendRequest
from .skipped import skipped, tail_of


def _fused_attention() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """torch's private operator; None where it is missing, takes no mask or no scale, or returns something else."""
    packet = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    schema = getattr(getattr(packet, "default", None), "_schema", None)
    if schema is None or len(schema.returns) != 2:
        return None
    return packet if {"attn_mask", "scale"} <= {argument.name for argument in schema.arguments} else None


_ATTENTION = _fused_attention()


def fused_serves(request: AttendRequest) -> bool:
    """Whether a call has 16 bits and torch the fused attention for it."""
    return _ATTENTION is not None and request.q.dtype in (torch.bfloat16, torch.float16)


@dataclass
class _Buffers:
    """Reused storage of one thread, shaped as the fused attention wants it.

    Attributes:
        keys, values: (g, size, D) the video blocks of one head; slots past the end of a short block stay zero.
        kept_keys, kept_values: (1, 1, extra + g * size, D), extra tokens in front, which every row keeps; hidden ones
            are left out.
    """

    keys: Tensor
    values: Tensor
    kept_keys: Tensor
    kept_values: Tensor

    @classmethod
    def allocate(cls, request: AttendRequest) -> _Buffers:
        table, dim = request.tables.k, request.q.shape[-1]
        blocks = (table.video, table.size, dim)
        columns = request.tables.layout.extra + table.video * table.size
        new = request.q.new_empty
        return cls(
            keys=request.q.new_zeros(blocks),
            values=request.q.new_zeros(blocks),
            kept_keys=new((1, 1, columns, dim)),
            kept_values=new((1, 1, columns, dim)),
        )

    def fill(self, k: Tensor, v: Tensor, video: Tensor, extra: Tensor) -> None:
        """Take in a head's k, v (L, D): tokens `video`, in block order, into blocks, tokens `extra` in front."""
        for x, blocks, kept in ((k, self.keys, self.kept_keys), (v, self.values, self.kept_values)):
            torch.index_select(x, 0, video, out=blocks.view(-1, blocks.shape[-1])[: len(video)])
            if len(extra):
                torch.index_select(x, 0, extra, out=kept[0, 0, : len(extra)])


def _shown(request: AttendRequest, batch: int) -> tuple[Tensor, Tensor | None]:
    """Host tokens (extra,) of the extra tokens that are not hidden, and the bias of all gathered columns.

    The bias (1, 1, 1, columns) float32 is zero but for those tokens; None where it would be zero throughout. Fused
    attention would not do for a row that has hidden tokens alone: the sum it returns for that is 1.
    """
    layout, table = request.tables.layout, request.tables.k
    tokens = request.tables.perm[layout.grid.tokens :]
    if request.key_bias is None:
        return tokens, None
    of_tokens = request.key_bias[batch if request.key_bias.shape[0] > 1 else 0]
    shown = of_tokens != -torch.inf
    tokens, of_tokens = tokens[shown], of_tokens[shown]
    if not of_tokens.any():
        return tokens, None
    bias = request.q.new_zeros((1, 1, 1, len(tokens) + table.video * table.size), dtype=torch.float32)
    bias[..., : len(tokens)] = of_tokens
    return tokens, bias


def attend_heads(request: AttendRequest, out: Tensor, indices: range) -> None:
    """Write the output of some of the B * H heads of a call that `fused_serves`."""
    tables = request.tables
    video, key_blocks = tables.q.bounds[tables.q.video], tables.k.video
    # Slots that the last video block has no tokens for.
    missing = key_blocks * tables.k.size - video
    buffers = _Buffers.allocate(request)
    for index in indices:
        batch, head = divmod(index, request.q.shape[1])
        extra, bias = _shown(request, batch)
        buffers.fill(request.k[batch, head], request.v[batch, head], tables.perm[:video], extra)
        tail, keep = tail_of(request, batch, head), request.keep[batch, head]
        queries = request.q[batch, head].index_select(0, tables.perm)
        results = torch.empty_like(queries)
        levels = queries.new_empty((len(queries), 1), dtype=torch.float32)
        of_video = keep[:, :key_blocks]
        # Asked for all rows at once: each question to a tensor costs a row some microseconds.
        counts, lasts = of_video.sum(1).tolist(), of_video[:, -1].tolist()
        for row, kept in enumerate(torch.split(of_video.nonzero()[:, 1], counts)):
            part = slice(tables.q.bounds[row], tables.q.bounds[row + 1])
            columns = len(extra) + counts[row] * tables.k.size - (missing if lasts[row] else 0)
            mask = None if bias is None else bias[..., :columns]
            into = results[part], levels[part]
            _attend_row(queries[part], kept, buffers, len(extra), columns, mask, request.scale, into)
        if tail is not None:
            rows = slice(0, video)
            scaled = queries[rows].float().mul_(request.scale)
            skips = keep[: tables.q.video, :key_blocks]
            # Covariances of keys and values leave float16's range where neither does.
            products = torch.bfloat16 if queries.dtype is torch.bfloat16 else scaled.dtype
            lost, lost_levels = skipped(scaled, skips, tables.q.size, tail, products=products)
            # The two parts weigh as their softmax sums do.
            share = lost_levels.sub_(levels[rows]).sigmoid_()
            results[rows] = torch.lerp(results[rows].float(), lost, share)
        out[batch, head].index_copy_(0, tables.perm, results)


def _attend_row(
    queries: Tensor,
    kept: Tensor,
    buffers: _Buffers,
    extra: int,
    columns: int,
    bias: Tensor | None,
    scale: float,
    out: tuple[Tensor, Tensor],
) -> None:
    """Write the output (n, D) of one query block and the logarithms (n, 1) of its softmax sums.

    Args:
        queries: (n, D).
        kept: ascending indices of video key blocks.
        extra: columns in front that are there already.
        columns: all that hold a token; the last of the blocks may be short.
        bias: (1, 1, 1, columns) or None.
    """
    if not columns:
        out[0].zero_()
        out[1].fill_(-torch.inf)
        return
    (blocks,), (_, size, dim) = kept.shape, buffers.keys.shape
    if blocks:
        for whole, some in ((buffers.keys, buffers.kept_keys), (buffers.values, buffers.kept_values)):
            place = some[0, 0, extra : extra + blocks * size]
            torch.index_select(whole, 0, kept, out=place.view(blocks, size, dim))
    assert _ATTENTION is not None
    found, level = _ATTENTION(
        queries[None, None],
        buffers.kept_keys[:, :, :columns],
        buffers.kept_values[:, :, :columns],
        attn_mask=bias,
        scale=scale,
    )
    out[0].copy_(found[0, 0])
    out[1].copy_(level[0, 0, :, None])
