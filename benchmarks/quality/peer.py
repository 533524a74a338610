"""The peers: the Sol-Attn recipe (arXiv 2607.24027), and comfy-kitchen's own reference implementation of it.

The recipe, as the paper describes it: strips of 64 tokens, per query block the top blocks by pooled score with the
neighbours |i - j| <= 1 forced, and for every other block its mean key and summed values, in the same softmax for
every query. comfy-kitchen's `sol_attn` differs in one thing: all queries of a block share the tail of their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.quality.work import spread_counts
from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.draft import Draft
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.selection import row_top_k

SOL_BLOCK = 64


def load_peer() -> Callable[..., Tensor] | None:
    """comfy-kitchen's eager `sol_attn`, or None where the package is not installed."""
    try:
        from comfy_kitchen.backends.eager.sol_attn import sol_attn
    except ImportError:
        return None
    return sol_attn  # type: ignore[no-any-return]


def neighbours(blocks: int, device: torch.device) -> Tensor:
    """(blocks, blocks) bool: |i - j| <= 1."""
    index = torch.arange(blocks, device=device)
    return (index[:, None] - index[None, :]).abs() <= 1


def pooled_scores(draft: Draft) -> Tensor:
    """q_mean . k_mean (B, H, N, N), unscaled; ranking needs no more."""
    return torch.matmul(draft.q_mean, draft.k_mean.transpose(-1, -2))


def sol_keep(scores: Tensor, density: float) -> Tensor:
    """Row top-k with neighbours ranked first: (B, H, N, N) bool.

    Rows keep floor or ceil of density * N blocks so that any density can be met; never fewer than their neighbours.
    """
    blocks = scores.shape[-1]
    forced = neighbours(blocks, scores.device)
    counts = spread_counts(density * blocks, blocks).to(scores.device)
    return row_top_k(scores.masked_fill(forced, torch.inf), torch.maximum(counts, forced.sum(-1)).unsqueeze(-1))


def peer_keep_topk(scores: Tensor, ratio: float) -> Tensor:
    """What comfy-kitchen's `topk_ratio` selects: the best round(ratio * N) of each row, ties kept, plus neighbours."""
    blocks = scores.shape[-1]
    count = max(0, min(blocks - 1, max(1, round(ratio * blocks))))
    forced = neighbours(blocks, scores.device)
    if not count:
        return forced.expand_as(scores)
    return (scores >= scores.topk(count, dim=-1).values[..., -1:]) | forced


def peer_keep_tau(draft: Draft, scale: float, tau: float) -> Tensor:
    """What comfy-kitchen's `tau` selects: scores above tau standard deviations of the row's proxy, plus neighbours."""
    log2s = scale * math.log2(math.e)
    centred = draft.k_mean - draft.k_mean.mean(2, keepdim=True)
    scores = torch.matmul(draft.q_mean, centred.transpose(-1, -2)) * log2s
    variance = torch.matmul(draft.q_mean.square(), centred.square().mean(2).unsqueeze(-1))
    threshold = tau * (variance * log2s * log2s + 1e-6).sqrt()
    return (scores > threshold) | neighbours(scores.shape[-1], scores.device)


def peer_itself(
    sol_attn: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *, ratio: float | None = None, tau: float = 1.0
) -> Tensor:
    """`sol_attn` of `load_peer` on q, k, v (B, H, L, D) in raster order, one head at a time: it is O(L^2)."""
    heads = []
    for head in range(q.shape[1]):
        part = (x[:, head : head + 1].transpose(1, 2) for x in (q, k, v))
        heads.append(sol_attn(*part, tau=tau, topk_ratio=ratio or 0.0).transpose(1, 2))
    return torch.cat(heads, dim=1)


def kitchen_itself(q: Tensor, k: Tensor, v: Tensor, layout: Layout, ratio: float, gains: tuple[float, ...]) -> Tensor:
    """The backend `kitchen` on q, k, v (B, H, L, D) of a layout in our order; on the CPU by the same eager function."""
    policy = Policy(ratio, "row", "mean", gains, spread=False)
    return attend(q, k, v, layout, policy, backend="kitchen").out
