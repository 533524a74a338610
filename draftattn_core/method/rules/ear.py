"""Error-aware selection: keep the blocks whose stand-in would be furthest from the truth, not those with most mass.

SVG-EAR (arXiv 2603.08982) computes, for the mean query of every query block, what its own stand-in (the mean value,
weighted by the mean key) gets wrong about every single token, and keeps the blocks with the largest error per area.
Errors of tokens that cancel inside a block are counted there, and the softmax of the row is left out. The same
selection for our tail asks for what is really lost: the part of the block's sums, above and below the fraction, that
the tail does not carry, as a change of the output. One pass of the mean queries over all keys (and, for our tail,
values) costs 1 / query block of a dense call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....kernels.types import Tail
from ...geometry.blocks import centre, statistics_dtype, video_in_order
from ...geometry.layout import LayoutTables
from ...geometry.per_head import per_head
from ..draft import draft_logits, log_block_counts
from ..selection import forced_blocks, row_top_k
from .call import RuleCall, whole_map
from .rule import Rule

# Logits of a block differ from their mean by no more than this; larger ones would leave float32's range when squared.
LARGEST_DEVIATION = 30.0
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class _Part:
    """Some heads and query blocks of a call against all video key blocks.

    Attributes:
        heads, rows: slices of the whole call.
        centre: (B, h, r, C) logit of each mean query on the mean key of each block.
        apart: (B, h, r, C, size) logits of the block's tokens less that; 0 in empty slots.
        values: (B, h, C, size, D) values, zeros in empty slots; v_mean: (B, h, C, D).
        q_mean: (B, h, r, D) times the scale.
    """

    heads: slice
    rows: slice
    centre: Tensor
    apart: Tensor
    values: Tensor
    v_mean: Tensor
    q_mean: Tensor


def _parts(
    q_mean: Tensor, k: Tensor, v: Tensor, tables: LayoutTables, scale: float, row_floats: int, chunk_bytes: int
) -> Iterator[_Part]:
    """Go through a call with at most `chunk_bytes` of `row_floats` numbers per head and query block at a time."""
    table, dtype = tables.k, statistics_dtype(k)
    batch, heads, blocks = q_mean.shape[:3]
    counts = table.counts[: table.video].to(dtype)[:, None]
    rows = max(1, chunk_bytes // (batch * row_floats * torch.finfo(dtype).bits // 8))
    head_step, row_step = max(1, rows // blocks), min(rows, blocks)
    for h in range(0, heads, head_step):
        part = slice(h, min(h + head_step, heads))
        keys = video_in_order(k[:, part], tables.perm, table)
        k_mean = keys.sum(3) / counts
        keys = centre(keys, k_mean, table)
        values = video_in_order(v[:, part], tables.perm, table)
        v_mean = values.sum(3) / counts
        for r in range(0, blocks, row_step):
            span = slice(r, min(r + row_step, blocks))
            queries = q_mean[:, part, span].to(dtype) * scale
            apart = torch.matmul(queries, keys.flatten(2, 3).transpose(-1, -2)).clamp_(max=LARGEST_DEVIATION)
            middle = torch.matmul(queries, k_mean.transpose(-1, -2))
            apart = apart.view(*middle.shape, table.size)
            yield _Part(part, span, middle, apart, values, v_mean, queries)


def token_errors(
    q_mean: Tensor, k: Tensor, v: Tensor, tables: LayoutTables, scale: float, *, chunk_bytes: int = _CHUNK_BYTES
) -> Tensor:
    """SVG-EAR's error: log of sum_j |exp(s_j) v_j - exp(sbar) vbar|^2 over the tokens j of each block.

    s_j = scale qbar.k_j, sbar = scale qbar.kbar. Written with deviations (exp(s_j - sbar) - 1 and v_j - vbar), so that
    tight blocks do not drown in rounding.

    Args:
        q_mean: (B, H, video q blocks, D) mean queries.
        k, v: (B, H, L, D) in the host's token order.

    Returns:
        (B, H, video q blocks, video k blocks), -inf where nothing is wrong.
    """
    table = tables.k
    errors = q_mean.new_empty(*q_mean.shape[:3], table.video)
    row_floats = 3 * table.video * table.size
    for part in _parts(q_mean, k, v, tables, scale, row_floats, chunk_bytes):
        # Empty slots repeat nothing: their value, deviation and exponent are zero.
        apart = centre(part.values.clone(), part.v_mean, table)
        size2, along, off2 = ((a * b).sum(-1).unsqueeze(2) for a, b in _squares(part.values, apart))
        grown = part.apart.expm1()
        wrong = (grown.square() * size2 + 2 * grown * along + off2).sum(-1).clamp_min(0)
        errors[:, part.heads, part.rows] = 2 * part.centre + wrong.log()
    return errors


def _squares(values: Tensor, apart: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return (values, values), (values, apart), (apart, apart)


@dataclass(frozen=True)
class Remainder:
    """What a tail loses of each block for the mean query of a query block.

    Attributes:
        log_error: (B, H, video q blocks, video k blocks) log of the squared length of the change of the numerator, or
            of the output times the row's denominator (see `tail_errors`).
        log_mass: (B, H, video q blocks) log of the row's denominator over the video.
    """

    log_error: Tensor
    log_mass: Tensor


def tail_errors(
    q_mean: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    tail: Tail,
    scale: float,
    *,
    of_output: bool = True,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Remainder:
    """What `tail` does not carry of each block's sums: the remainder of its expansion, tokens taken together.

    With e_j = exp(s_j), n, kbar, vbar of the block and C the tail's linear term, the block counts
    N = sum_j e_j v_j above and M = sum_j e_j below the fraction; the tail counts n e^(sbar + gain) (vbar + s qbar C)
    and n e^(sbar + gain). With dN and dM their differences and o the output of the row, the output changes by
    (dN - o dM) / mass to first order. Arguments as for `token_errors`.

    Args:
        tail: the tail in use; a head whose tail is `none` loses its blocks whole.
        of_output: rank by |dN - o dM|; otherwise by |dN|, which leaves out the softmax as SVG-EAR does.
    """
    table, dim = tables.k, k.shape[-1]
    errors = q_mean.new_empty(*q_mean.shape[:3], table.video)
    masses = q_mean.new_empty(q_mean.shape[:3])
    counts = table.counts[: table.video].to(q_mean.dtype)
    log_counts = log_block_counts(tables, q_mean.dtype)
    row_floats = 2 * table.video * (table.size + 2 * dim)
    for part in _parts(q_mean, k, v, tables, scale, row_floats, chunk_bytes):
        some = tail.of_heads(part.heads)
        grown = part.apart.expm1()
        # (B, h, C, r, D): what the tokens add to n vbar, over e^sbar.
        above = torch.matmul(grown.transpose(2, 3), part.values)
        below = grown.sum(-1)
        gain = (some.log_weight - log_counts).to(above.dtype)
        factor = counts * gain.expm1()
        stand_in = _linear(part.q_mean, some)
        lost = above.transpose(2, 3) - factor.view(1, -1, 1, table.video, 1) * part.v_mean.unsqueeze(2)
        if stand_in is not None:
            lost -= (counts * gain.exp()).view(1, -1, 1, table.video, 1) * stand_in
        lost_mass = below - factor.unsqueeze(1)
        whole = part.centre + (counts + below).clamp_min(torch.finfo(below.dtype).tiny).log()
        mass = whole.logsumexp(-1)
        if of_output:
            weight = (part.centre - mass.unsqueeze(-1)).exp()
            sums = above.transpose(2, 3) + (counts[:, None] * part.v_mean).unsqueeze(2)
            output = (weight.unsqueeze(-1) * sums).sum(3, keepdim=True)
            lost = lost - output * lost_mass.unsqueeze(-1)
        errors[:, part.heads, part.rows] = 2 * part.centre + lost.square().sum(-1).log()
        masses[:, part.heads, part.rows] = mass
    return Remainder(errors, masses)


def _linear(queries: Tensor, tail: Tail) -> Tensor | None:
    """What the tail adds to a block's mean value: (B, h, r, C or 1, D), from queries (B, h, r, D) times the scale."""
    added = None
    if tail.cov is not None:
        added = torch.matmul(queries, tail.cov).unsqueeze(3)
    if tail.u is not None and tail.w is not None:
        for rank in range(tail.ranks):
            along = torch.matmul(queries, tail.u[:, :, :, rank].transpose(-1, -2))
            pair = along.unsqueeze(-1) * tail.w[:, :, None, :, rank]
            added = pair if added is None else added + pair
    return added


def budget_by_mass(logits: Tensor, mass: float, least: float = 0.0) -> Tensor:
    """SVG-EAR's own budget: how many blocks hold `mass` of a row's draft, (B, H, R, 1) int64.

    Args:
        logits: (B, H, R, C) draft logits, counts included.
        mass: share of the softmax, the block that passes it included (published: 0.9).
        least: share of the blocks that is kept by probability; where it is positive the budget is at least twice it.
    """
    ordered = logits.softmax(-1).sort(-1, descending=True).values
    needed = (ordered.cumsum(-1) - ordered < mass).sum(-1, keepdim=True)
    return needed.clamp_min(min(logits.shape[-1], 2 * int(least * logits.shape[-1])))


def most_wrong(errors: Tensor, logits: Tensor, forced: Tensor, promised: Tensor, budget: Tensor) -> Tensor:
    """Per row: what is forced, the likeliest blocks up to `promised` in all, then the largest errors up to `budget`.

    Args:
        errors: (B, H, R, C) log errors per area; blocks of one size need no area.
        logits: (B, H, R, C) draft logits.
        forced: (R, C) bool.
        promised, budget: broadcastable to (B, H, R, 1), int64.
    """
    least = row_top_k(logits.masked_fill(forced, torch.inf), torch.maximum(promised, forced.sum(-1, keepdim=True)))
    ranked = errors.nan_to_num(nan=-torch.inf, posinf=torch.finfo(errors.dtype).max).masked_fill(least, torch.inf)
    return row_top_k(ranked, torch.maximum(budget, least.sum(-1, keepdim=True)))


def head_budget_by_error(errors: Tensor, logits: Tensor, forced: Tensor, promised: Tensor, budget: Tensor) -> Tensor:
    """As `most_wrong`, but rows of a head share its budget (B or 1, H) int64 by error, which must compare across rows.

    Every row keeps its promise; a budget smaller than all promises grows to them.
    """
    least = row_top_k(logits.masked_fill(forced, torch.inf), torch.maximum(promised, forced.sum(-1, keepdim=True)))
    ranked = errors.nan_to_num(nan=-torch.inf, posinf=torch.finfo(errors.dtype).max).masked_fill(least, torch.inf)
    limits = torch.maximum(budget, least.sum((2, 3)))
    return row_top_k(ranked.flatten(2), limits.unsqueeze(-1)).view_as(least)


def _logits(call: RuleCall) -> Tensor:
    """Draft logits by mass alone: without the spread, which is our own way to guess an error."""
    return draft_logits(replace(call.draft, k_spread=None), call.tables, call.scale)


def _promise(call: RuleCall, share: float) -> Tensor:
    """(H, 1, 1) int64: a share of each head's even row budget, at least one block where nothing stands in for a row."""
    least = 1 if call.policy.drops else 0
    counts = [max(least, round(share * density * call.tables.k.video)) for density in call.heads.densities]
    return per_head(counts, call.q.device, torch.int64)[:, None, None]


def select(call: RuleCall) -> Tensor:
    """SVG-EAR's selection on our blocks in place of clusters: each row spends its density on the largest errors.

    `policy.floor` of the budget goes to the likeliest blocks (the released code promises a share of the keys). Its own
    budget, `budget_by_mass`, depends on the call; at a given density the two differ in how rows share, not in which
    blocks a row prefers.
    """
    errors = token_errors(call.draft.q_mean, call.k, call.v, call.tables, call.scale)
    areas = log_block_counts(call.tables, errors.dtype)
    forced = forced_blocks(call.tables, call.policy)
    promised, budget = _promise(call, call.policy.floor), _promise(call, 1.0)
    return whole_map(most_wrong(errors - areas, _logits(call), forced, promised, budget), call.tables)


def select_by_tail_error(call: RuleCall) -> Tensor:
    """The blocks whose loss under the policy's own tail would change the output most; a head's rows share its budget.

    Raises:
        ValueError: if no head has a tail; then blocks are lost whole, and `head` or `row` rank them for less.
    """
    if call.tail is None:
        raise ValueError("ranking by the tail's error needs a tail: choose one, or another selection rule")
    lost = tail_errors(call.draft.q_mean, call.k, call.v, call.tables, call.tail, call.scale)
    rows = call.tables.q.counts[: call.tables.q.video].to(lost.log_error.dtype).log()
    areas = log_block_counts(call.tables, rows.dtype)
    # Squared change of the outputs of all rows of the block per pair of tokens: the row count cancels.
    errors = lost.log_error - 2 * lost.log_mass.unsqueeze(-1) - areas
    forced = forced_blocks(call.tables, call.policy)
    pairs = call.tables.q.video * call.tables.k.video
    budgets = [round(density * pairs) for density in call.heads.densities]
    budget = per_head(budgets, call.q.device, torch.int64).unsqueeze(0)
    promised = _promise(call, call.policy.floor)
    return whole_map(head_budget_by_error(errors, _logits(call), forced, promised, budget), call.tables)


RULE = Rule(select)
TAIL_RULE = Rule(select_by_tail_error)
