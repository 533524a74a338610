"""Selection by the draft's scores: what the rules that rank them share, and how a call is taken through one.

Scores are (B, H, R, C) (rows = query blocks, columns = key blocks; -inf for NaN, finite above). What is kept is
deterministic: ties go to the lowest index, except under the rule `draft`, which keeps all entries equal to its
threshold, as the published code does. Nothing here reads a value back from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..geometry.layout import LayoutTables
from ..geometry.per_head import per_head
from .draft import Draft, draft_logits
from .policy import Policy, head_densities
from .rules import rule_of
from .rules.call import RuleCall, whole_map
from .rules.rule import Ranking

# Scores, sort keys and sort indices of one group of heads; whole maps of a long video would take gigabytes.
_CHUNK_BYTES = 256 << 20
_BYTES_PER_PAIR = 40


def row_top_k(scores: Tensor, counts: Tensor) -> Tensor:
    """Mask of the `counts` (integers, broadcastable to (..., 1)) best entries along the last axis; ties by index."""
    return _best_by_threshold(scores, counts) if scores.device.type == "cpu" else _best_by_sorting(scores, counts)


def _best_by_sorting(scores: Tensor, counts: Tensor) -> Tensor:
    """`row_top_k` without reading anything back from the device."""
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    wanted = torch.arange(scores.shape[-1], device=scores.device) < counts
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, wanted.expand_as(order))


def _best_by_threshold(scores: Tensor, counts: Tensor) -> Tensor:
    """`row_top_k` for the CPU: the largest count may be read, and finding a few entries is cheaper than sorting."""
    counts = counts.expand(*scores.shape[:-1], 1).long()
    largest = scores.topk(max(1, int(counts.max())), dim=-1).values
    threshold = largest.gather(-1, (counts - 1).clamp_min(0))
    above, equal = scores > threshold, scores == threshold
    left = counts - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= left))


def forced_blocks(tables: LayoutTables, policy: Policy) -> Tensor:
    """(R, C) bool, contiguous, to be read only: pairs of video blocks that are kept whatever they score."""

    def make() -> Tensor:
        forced = tables.own.clone() if policy.keep_own else torch.zeros_like(tables.own)
        for frame, kept in ((tables.first_frame, policy.keep_first_frame), (tables.last_frame, policy.keep_last_frame)):
            if kept:
                forced |= frame
        return forced

    if policy.keep_own and not (policy.keep_first_frame or policy.keep_last_frame):
        return tables.own
    return tables.constant(("forced", *forced_key(policy)), make)


def forced_key(policy: Policy) -> tuple[bool, ...]:
    """What of a policy decides which pairs are forced."""
    return (policy.keep_own, policy.keep_first_frame, policy.keep_last_frame)


def row_limits(tables: LayoutTables, policy: Policy, wanted: Sequence[int]) -> Tensor:
    """(H, R) int32: per head at least `wanted`, at least what is forced, and one where nothing stands in for a row."""
    fewest = 1 if policy.drops else 0
    least = tuple(max(fewest, count) for count in wanted)

    def make() -> Tensor:
        counts = per_head(least, tables.perm.device, torch.int32)
        return torch.maximum(counts[:, None], forced_blocks(tables, policy).sum(-1, dtype=torch.int32))

    return tables.constant(("row counts", least, forced_key(policy)), make)


def by_draft(call: RuleCall) -> Tensor:
    """`Rule.select` of the rules that rank the draft's scores."""
    policy = replace(call.policy, density=call.heads.densities)
    return select_from_draft(call.draft, call.tables, policy, call.scale)


def ranking_of(policy: Policy) -> Ranking:
    """The ranking of a policy's rule.

    Raises:
        ValueError: if the rule looks at more than scores.
    """
    ranking = rule_of(policy.method).ranking
    if ranking is None:
        raise ValueError(f"the rule {policy.method!r} looks at more than the draft's scores: select by a whole call")
    return ranking


def select_blocks(scores: Tensor, tables: LayoutTables, policy: Policy) -> Tensor:
    """Kept block pairs of a whole call: (B, H, q blocks, k blocks) bool, extra-token blocks included.

    `scores` (B, H, video q blocks, video k blocks) come from `draft_logits`. Forced pairs count towards the budget;
    where they exceed it the call is denser than asked. No row is empty unless a tail stands in for what it skips.
    """
    ranking = ranking_of(policy)
    limits = ranking.limits(tables, policy, head_densities(policy.density, scores.shape[1]))
    return whole_map(ranking.keep(scores, forced_blocks(tables, policy), limits), tables)


def select_from_draft(draft: Draft, tables: LayoutTables, policy: Policy, scale: float) -> Tensor:
    """`select_blocks` on the `draft_logits` of a call, a few heads at a time, so that memory stays bounded."""
    batch, heads = draft.q_mean.shape[:2]
    keep = torch.empty(batch, heads, tables.q.total, tables.k.total, dtype=torch.bool, device=draft.q_mean.device)
    densities = head_densities(policy.density, heads)
    step = max(1, _CHUNK_BYTES // (batch * tables.q.video * tables.k.video * _BYTES_PER_PAIR))
    for start in range(0, heads, step):
        part = slice(start, start + step)
        scores = draft_logits(draft.of_heads(part), tables, scale)
        keep[:, part] = select_blocks(scores, tables, replace(policy, density=densities[part]))
    return keep
