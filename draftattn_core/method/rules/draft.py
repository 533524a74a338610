"""The rule `draft`: DraftAttention as published, one threshold per head (arXiv 2505.14708, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.types import Limits
from ...geometry.layout import LayoutTables
from ...geometry.per_head import per_head
from ..policy import Policy
from ..selection import by_draft
from .rule import Rule


class PaperThreshold:
    """Per head, the k = int((1 - density) R C) smallest entries of the post-softmax map are dropped.

    Entries equal to the threshold (the largest of those k) are kept, as in the released code, so at least
    R C - k + 1 survive; k = 0 keeps all.
    """

    form = "draft"

    def limits(self, tables: LayoutTables, policy: Policy, densities: tuple[float, ...]) -> Limits:
        counts = threshold_ranks(densities, tables.q.video * tables.k.video)
        return Limits(heads=per_head(counts, tables.perm.device, torch.int32), rescue=policy.drops)

    def keep(self, scores: Tensor, forced: Tensor, limits: Limits) -> Tensor:
        assert limits.heads is not None
        keep = above_threshold(scores, limits.heads) | forced
        if limits.rescue:
            best = torch.zeros_like(keep).scatter_(-1, scores.argmax(-1, keepdim=True), True)
            keep = keep | (best & ~keep.any(-1, keepdim=True))
        return keep


def threshold_ranks(densities: tuple[float, ...], entries: int) -> list[int]:
    """Per head, how many entries of its map are at least its threshold, ties left out: its rank from the largest."""
    dropped = [int((1.0 - d) * entries) for d in densities]
    # The smallest of those kept is the largest of those dropped; with none dropped it is the smallest of all.
    return [min(entries, entries - k + 1) for k in dropped]


def above_threshold(scores: Tensor, ranks: Tensor) -> Tensor:
    """Entries of scores (B, H, R, C) whose softmax is not below the `ranks`-th largest (H,) of their head."""
    probabilities = torch.nan_to_num(scores.softmax(-1)).flatten(2)
    batch, heads, entries = probabilities.shape
    index = (entries - ranks.long()).view(1, heads, 1).expand(batch, heads, 1)
    return (probabilities >= probabilities.sort(-1).values.gather(-1, index)).view_as(scores)


RULE = Rule(by_draft, PaperThreshold())
