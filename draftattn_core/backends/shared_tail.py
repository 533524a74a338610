"""A tail that the rows of a query block share, as comfy-kitchen's `sol_attn` has it.

Its keys are centred: with k' the mean over all key blocks, extra ones included, of their mean keys, a row q of a block
with mean query q' weighs a skipped block j by exp(s (q'.(k_j - k') + q.k')), where a tail of its own would have
exp(s q.k_j).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry.blocks import block_means
from .request import AttendRequest


def skipped_by(request: AttendRequest, q: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """What rows weigh skipped blocks by: the logits of block j are asking . k_j + level.

    Args:
        q: (B, H, rows, D) the rows times the scale.
        block: (rows,) int64 their query blocks, of video rows only.

    Returns:
        asking (B, H, rows, D), level (B, H, rows, 1): q and 0 where the tail is not shared.
    """
    if not request.shared_tail:
        return q, torch.zeros_like(q[..., :1])
    tables = request.tables
    means = block_means(request.q, tables.perm, tables.q)[:, :, block].to(q.dtype) * request.scale
    return means, torch.matmul(q - means, centre_key(request).to(q.dtype).transpose(-1, -2))


def centre_key(request: AttendRequest) -> Tensor:
    """(B, H, 1, D) mean over all key blocks, extra ones included, of their mean keys."""
    tables = request.tables
    table = tables.k
    total = block_means(request.k, tables.perm, table).sum(2)
    for start, end in zip(table.bounds[table.video : -1], table.bounds[table.video + 1 :]):
        total = total + request.k.index_select(2, tables.perm[start:end]).to(total.dtype).mean(2)
    return (total / table.total).unsqueeze(2)
