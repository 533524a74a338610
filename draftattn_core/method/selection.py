"""Selection: which block pairs of the draft map are computed exactly.

Every function maps scores (B, H, R, C) (rows = query blocks, columns = key blocks; -inf for NaN, finite above) to a
bool mask of the same shape. They are deterministic: ties go to the lowest index, except for `paper_threshold`, which
keeps all entries equal to its threshold, as the published code does. None of them reads a value back from the device.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..geometry.layout import LayoutTables
from ..geometry.per_head import per_head
from .draft import Draft, draft_logits
from .policy import Policy, head_densities

# Scores, sort keys and sort indices of one group of heads; whole maps of a long video would take gigabytes.
_CHUNK_BYTES = 256 << 20
_BYTES_PER_PAIR = 40


def _best(scores: Tensor, counts: Tensor) -> Tensor:
    """Mask of the `counts` (broadcastable to (..., 1)) largest entries along the last axis; ties go by index."""
    return _best_by_threshold(scores, counts) if scores.device.type == "cpu" else _best_by_sorting(scores, counts)


def _best_by_sorting(scores: Tensor, counts: Tensor) -> Tensor:
    """`_best` without reading anything back from the device."""
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    wanted = torch.arange(scores.shape[-1], device=scores.device) < counts
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, wanted.expand_as(order))


def _best_by_threshold(scores: Tensor, counts: Tensor) -> Tensor:
    """`_best` for the CPU, where the largest count may be read and finding a few entries is cheaper than sorting."""
    counts = counts.expand(*scores.shape[:-1], 1)
    largest = scores.topk(max(1, int(counts.max())), dim=-1).values
    threshold = largest.gather(-1, (counts - 1).clamp_min(0))
    above, equal = scores > threshold, scores == threshold
    left = counts - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= left))


def row_top_k(scores: Tensor, counts: Tensor) -> Tensor:
    """Keep the `counts` (broadcastable to (B, H, R, 1), int64) best entries of every row."""
    return _best(scores, counts)


def head_budget(scores: Tensor, forced: Tensor, row_least: Tensor, budgets: Tensor) -> Tensor:
    """Keep the best `budgets` (H,) int64 entries of every head's whole map, after what every row is promised.

    A row is promised its `forced` (R, C) entries and its best ones up to `row_least` (H, R) int64 in all, which must
    not be fewer than its forced ones; a budget smaller than the sum of the promises grows to it. The rest goes to the
    largest log-softmax, so a row with large logits does not starve the others.
    """
    batch, heads, rows, columns = scores.shape
    log_mass = torch.nan_to_num(scores.log_softmax(-1), nan=-torch.inf, neginf=-torch.inf)
    promised = _best(scores.masked_fill(forced, torch.inf), row_least.unsqueeze(-1))
    ranked = log_mass.masked_fill_(promised, torch.inf).view(batch, heads, rows * columns)
    limits = torch.maximum(budgets, row_least.sum(-1)).view(1, heads, 1)
    return _best(ranked, limits).view(batch, heads, rows, columns)


def row_top_p(scores: Tensor, mass: float, least: Tensor) -> Tensor:
    """Keep, per row, the shortest prefix of the sorted softmax that holds `mass`, and at least `least` entries.

    A row without a single number among its scores is kept whole.
    """
    probabilities = torch.nan_to_num(scores.softmax(-1))
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    ordered = probabilities.gather(-1, order)
    before = ordered.cumsum(-1) - ordered
    position = torch.arange(scores.shape[-1], device=scores.device)
    kept = (before < mass) | (position < least)
    return torch.zeros_like(kept).scatter_(-1, order, kept)


def paper_threshold(scores: Tensor, densities: tuple[float, ...]) -> Tensor:
    """The published rule: per head, drop the k = int((1 - density) R C) smallest entries of the post-softmax map.

    Entries equal to the threshold (the largest of those k) are kept, as in the released code, so at least
    R C - k + 1 survive; k = 0 keeps all (arXiv 2505.14708, section 4.2; the code's rule as described in the notes).
    """
    batch, heads, rows, columns = scores.shape
    probabilities = torch.nan_to_num(scores.softmax(-1)).view(batch, heads, rows * columns)
    ascending = probabilities.sort(-1).values
    dropped = per_head([int((1.0 - d) * rows * columns) for d in densities], scores.device, torch.int64)
    index = (dropped - 1).clamp_min(0).view(1, heads, 1).expand(batch, heads, 1)
    threshold = ascending.gather(-1, index)
    keep = (probabilities >= threshold) | (dropped == 0).view(1, heads, 1)
    return keep.view(batch, heads, rows, columns)


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


def select_blocks(scores: Tensor, tables: LayoutTables, policy: Policy) -> Tensor:
    """Kept block pairs of a whole call: (B, H, q blocks, k blocks) bool, extra-token blocks included.

    `scores` (B, H, video q blocks, video k blocks) come from `draft_logits`. Forced pairs count towards the budget;
    where they exceed it the call is denser than asked. No row is empty unless a tail stands in for what it skips.
    """
    batch, heads, rows, columns = scores.shape
    densities = head_densities(policy.density, heads)
    forced = forced_blocks(tables, policy)
    fewest = 1 if policy.drops else 0

    def least(wanted: list[int]) -> Tensor:
        """(H, R): per head at least `wanted`, at least what is forced, and one where nothing stands in for a row."""
        counts = per_head([max(fewest, count) for count in wanted], scores.device, torch.int64)
        return torch.maximum(counts.unsqueeze(1), forced.sum(-1))

    if policy.method == "draft":
        keep = paper_threshold(scores, densities) | forced
    elif policy.method == "top_p":
        floors = least([math.ceil(policy.floor * d * columns) for d in densities])
        keep = row_top_p(scores, policy.top_p, floors.unsqueeze(-1)) | forced
    elif policy.method == "row":
        counts = least([round(d * columns) for d in densities])
        keep = row_top_k(scores.masked_fill(forced, torch.inf), counts.unsqueeze(-1))
    else:
        budgets = per_head([round(d * rows * columns) for d in densities], scores.device, torch.int64)
        keep = head_budget(scores, forced, least([math.floor(policy.floor * d * columns) for d in densities]), budgets)
    if policy.drops and policy.method == "draft":
        best = torch.zeros_like(keep).scatter_(-1, scores.argmax(-1, keepdim=True), True)
        keep = keep | (best & ~keep.any(-1, keepdim=True))

    if tables.layout.extra == 0:
        return keep
    full = torch.ones(batch, heads, tables.q.total, tables.k.total, dtype=torch.bool, device=scores.device)
    full[:, :, :rows, :columns] = keep
    return full


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
