"""The draft: attention between block means of Q and K, one small map per head (arXiv 2505.14708, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.blocks import block_means, block_means_and_spread
from ..geometry.layout import LayoutTables
from ..geometry.per_head import per_head


@dataclass(frozen=True)
class Draft:
    """What one pass over Q and K leaves for selection and tail.

    Attributes:
        q_mean: (B, H, q blocks, D) means over the real video tokens of each query block.
        k_mean: (B, H, k blocks, D).
        k_spread: (B, H, k blocks) mean squared distance of the keys of a block from their mean, 1 for heads that do not
            rank by it; None if no head does.
    """

    q_mean: Tensor
    k_mean: Tensor
    k_spread: Tensor | None

    def of_heads(self, part: slice) -> Draft:
        """The same for some of the heads, as views."""
        spread = None if self.k_spread is None else self.k_spread[:, part]
        return Draft(self.q_mean[:, part], self.k_mean[:, part], spread)


def spread_of_heads(k_spread: Tensor, wanted: Sequence[bool]) -> Tensor | None:
    """`Draft.k_spread` from the spread of all heads (B, H, k blocks), given which of them rank by it."""
    if not any(wanted):
        return None
    if all(wanted):
        return k_spread
    unwanted = per_head([not on for on in wanted], k_spread.device, torch.bool)
    return k_spread.masked_fill(unwanted[:, None], 1.0)


def make_draft(q: Tensor, k: Tensor, tables: LayoutTables, *, spread: bool | Sequence[bool]) -> Draft:
    """Block statistics of post-RoPE q and k (B, H, L, D), in float32 (float64 for float64 inputs).

    Args:
        spread: whether heads rank by their spread, for all of them or one by one (`Policy.spreads`).
    """
    wanted = (spread,) * q.shape[1] if isinstance(spread, bool) else spread
    q_mean = block_means(q, tables.perm, tables.q)
    if any(wanted):
        k_mean, k_spread = block_means_and_spread(k, tables.perm, tables.k)
        return Draft(q_mean, k_mean, spread_of_heads(k_spread, wanted))
    return Draft(q_mean, block_means(k, tables.perm, tables.k), None)


def log_block_counts(tables: LayoutTables, dtype: torch.dtype) -> Tensor:
    """(k blocks,) log of the token counts of the video's key blocks; to be read only."""
    return tables.constant(("log counts", dtype), lambda: tables.k.counts[: tables.k.video].to(dtype).log())


def raw_logits(draft: Draft, tables: LayoutTables, scale: float) -> Tensor:
    """`draft_logits` with what is not finite as it comes, in one product over the map."""
    batch, heads, rows, dim = draft.q_mean.shape
    bias = log_block_counts(tables, draft.q_mean.dtype)
    if draft.k_spread is not None:
        log_spread = draft.k_spread.clamp_min(torch.finfo(bias.dtype).tiny).log_()
        bias = torch.add(bias, log_spread, alpha=0.5).reshape(batch * heads, 1, -1)
    q_mean, k_mean = draft.q_mean.reshape(-1, rows, dim), draft.k_mean.reshape(batch * heads, -1, dim)
    return torch.baddbmm(bias, q_mean, k_mean.transpose(1, 2), alpha=scale).view(batch, heads, rows, -1)


def draft_logits(draft: Draft, tables: LayoutTables, scale: float) -> Tensor:
    """Block scores (B, H, q blocks, k blocks): `scale` q_mean . k_mean plus what the blocks' sizes and spread add.

    The log of a key block's token count makes a short last block weigh what it holds. Half the log of the spread
    (the standard deviation of its keys) ranks up the blocks whose expansion around the mean would be worst
    (error-aware selection as in SVG-EAR, arXiv 2603.08982, and PISA, arXiv 2602.01077). NaN scores rank last; infinite
    ones become the largest finite number, so that what a selection forces still ranks above them.
    """
    logits = raw_logits(draft, tables, scale)
    return logits.nan_to_num_(nan=-torch.inf, posinf=torch.finfo(logits.dtype).max, neginf=-torch.inf)
