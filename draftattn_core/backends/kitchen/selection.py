"""What `sol_attn` selects, computed anew from the draft: it keeps its own selection to itself.

Per query block the best of the pooled scores q_mean . k_mean, all that equal the last of them included, and the blocks
next to it in the order. Its compiled kernel rounds these scores to INT8, so that pairs nearly equal to the last one may
differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...geometry.layout import LayoutTables
from ...method.draft import Draft
from ...method.rules.call import whole_map


def blocks_of(density: float, tables: LayoutTables) -> int:
    """Key blocks that `sol_attn` is asked for in each row, at least one; all of them for a dense head."""
    return min(tables.k.video, max(1, round(density * tables.k.video)))


def kept(draft: Draft, tables: LayoutTables, wanted: int) -> Tensor:
    """(B, h, q blocks, k blocks) bool, extra-token blocks included, where each row asks for `wanted` key blocks."""
    blocks = tables.k.video
    scores = torch.matmul(draft.q_mean, draft.k_mean.transpose(-1, -2))
    if wanted >= blocks:
        return whole_map(torch.ones_like(scores, dtype=torch.bool), tables)
    least = scores.topk(wanted, dim=-1).values[..., -1:]
    return whole_map((scores >= least) | tables.constant("kitchen neighbours", lambda: _neighbours(tables)), tables)


def _neighbours(tables: LayoutTables) -> Tensor:
    """(blocks, blocks) bool: |i - j| <= 1."""
    index = torch.arange(tables.k.video, device=tables.perm.device)
    return (index[:, None] - index[None, :]).abs() <= 1
