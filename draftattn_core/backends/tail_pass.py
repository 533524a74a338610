"""The tail as a second pass, for kernels that return kept blocks only: merged by log-sum-exp, in bounded scratch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.types import Tail
from ..geometry.blocks import statistics_dtype
from ..method.tail.formula import add_skipped, skipped_logits
from .request import AttendRequest

SCRATCH_BYTES = 64 << 20


def merge_tail(out: Tensor, lse: Tensor, queries: Tensor, request: AttendRequest) -> None:
    """Let the skipped blocks enter the softmax of finished rows, in place.

    Args:
        out: (B, H, q blocks * q block, D) attention over the kept blocks, rows in block order, q blocks full.
        lse: (B, H, q blocks * q block) float32 natural log of their softmax sums; -inf for a row that kept nothing,
            whose `out` is not looked at.
        queries: the rows' queries, shaped like `out`.
        request: with a tail; what is kept and the tail's tables are taken from it.
    """
    tail, tables = request.tail, request.tables
    assert tail is not None
    dtype, rows, size, video = statistics_dtype(out), tables.q.total, tables.q.size, tables.k.video
    batch, heads, _, dim = out.shape
    blocks_at_once = max(1, SCRATCH_BYTES // (size * (3 * video + 6 * dim) * dtype.itemsize))
    heads_at_once = max(1, blocks_at_once // rows)
    shape = (batch, heads, rows, size, dim)
    out, lse, queries = out.view(shape), lse.reshape(shape[:-1]), queries.view(shape)
    for b in range(batch):
        for h in range(0, heads, heads_at_once):
            part = slice(h, min(h + heads_at_once, heads))
            one = tail.of_batch(b, part)
            for r in range(0, rows, blocks_at_once):
                where = (b, part, slice(r, r + blocks_at_once))
                keep = request.keep[where][..., :video]
                scaled = queries[where].to(dtype) * request.scale
                out[where] = _merged(out[where].to(dtype), lse[where].to(dtype), scaled, keep, one).to(out.dtype)


def _merged(out: Tensor, lse: Tensor, scaled: Tensor, keep: Tensor, tail: Tail) -> Tensor:
    """Rows (h, r, q block, D) with the tail in; `scaled` queries, `keep` (h, r, g), per-head tail tables."""
    queries = scaled.flatten(1, 2)
    scores = skipped_logits(queries, tail).view(*scaled.shape[:3], -1).masked_fill_(keep.unsqueeze(2), -torch.inf)
    # One of the two is finite: a row keeps something or its tail holds everything it skipped.
    highest = torch.maximum(scores.amax(-1), lse).unsqueeze(-1)
    weights = scores.sub_(highest).exp_()
    exact = (lse.unsqueeze(-1) - highest).exp_()
    merged = torch.where(exact > 0, exact * out, torch.zeros_like(out))
    mass = add_skipped(merged.view_as(queries), weights.flatten(1, 2), queries, tail)
    return merged / (exact + mass.view_as(exact))
