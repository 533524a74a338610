"""The tail: what stands in for skipped blocks inside the same softmax (design.md section 1).

For a query q, scale s and a skipped block j of n_j tokens with means k_j, v_j and cross-covariance
C_j = mean over its tokens of (k - k_j)(v - v_j)^T, the block counts p_j = n_j exp(s q.k_j) in the denominator and
p_j (v_j + s q C_j) in the numerator: the first terms of its Taylor expansion around the mean key.
`mean` drops C_j (the term of Sol-Attn, arXiv 2607.24027); `linear0` replaces it by its average over blocks (the term
of PISA, arXiv 2602.01077); `linear1` and `linear2` keep one or two leading singular pairs u w^T of each block's C_j
and average the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....kernels.types import Tail
from ...geometry.blocks import (
    block_means,
    block_means_and_spread,
    centre,
    head_chunks,
    statistics_dtype,
    video_in_order,
)
from ...geometry.layout import LayoutTables
from ...geometry.per_head import per_head
from ..policy import TailName, head_gains, head_tails, tail_rank

POWER_ITERATIONS = 2
# Rows iterated beyond the ranks wanted: far cheaper than more iterations for the same accuracy.
OVERSAMPLING = 2


@dataclass(frozen=True)
class Expansion:
    """What every tail of one call is made from, without what sets them apart; shapes as in `Tail`.

    Attributes:
        counts: (g,) tokens per block.
        total: (B, H, D, D) sum over blocks of n_j C_j; None if no linear term is wanted.
        u, w: as many singular pairs as the highest rank wanted; None for none.
        k_spread: (B, H, g) mean squared distance of a block's keys from their mean; None if not asked for.
    """

    counts: Tensor
    k_mean: Tensor
    v_mean: Tensor
    total: Tensor | None = None
    u: Tensor | None = None
    w: Tensor | None = None
    k_spread: Tensor | None = None


def singular_pairs(
    keys: Tensor, values: Tensor, counts: Tensor, ranks: int, products: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Leading `ranks` singular pairs of C = keys^T values / count, without forming C.

    Subspace iteration with `OVERSAMPLING` more rows than wanted, from the value deviations of the tokens with the
    largest |k||v|, then a rotation inside the subspace found (Halko, Martinsson, Tropp, SIAM Review 53, 2011). Each
    iteration costs four products of a few rows with n x D matrices.

    Args:
        keys, values: (..., n, D) deviations from the block means; slots past `counts` hold zeros.
        counts: (...,) tokens per block.
        products: (..., D, D) keys^T values, where they are at hand: an iteration is two products with them then.

    Returns:
        u (..., ranks, D) orthonormal rows and w (..., ranks, D) with C ~ sum_r u_r w_r^T, largest first; fewer than
        `ranks` where a block has fewer tokens. A block without spread gives zeros.
    """

    def towards_keys(rows: Tensor) -> Tensor:
        if products is not None:
            return torch.matmul(rows, products.transpose(-1, -2))
        return torch.matmul(torch.matmul(rows, values.transpose(-1, -2)), keys)

    def towards_values(rows: Tensor) -> Tensor:
        if products is not None:
            return torch.matmul(rows, products)
        return torch.matmul(torch.matmul(rows, keys.transpose(-1, -2)), values)

    weight = keys.norm(dim=-1) * values.norm(dim=-1)
    lead = weight.topk(min(ranks + OVERSAMPLING, keys.shape[-2]), dim=-1).indices
    w = values.gather(-2, lead.unsqueeze(-1).expand(*lead.shape, values.shape[-1]))
    u = w
    for step in range(POWER_ITERATIONS):
        u = towards_keys(w)
        if step < POWER_ITERATIONS - 1:
            u = u / u.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        else:
            u = _orthonormal(u)
        w = towards_values(u)
    rotation = _leading_vectors(torch.matmul(w, w.transpose(-1, -2)), min(ranks, keys.shape[-2]))
    return torch.matmul(rotation, u), torch.matmul(rotation, w) / counts[..., None, None]


def _orthonormal(rows: Tensor) -> Tensor:
    """Gram-Schmidt on the few rows of (..., r, D), twice for accuracy; a row without length becomes zero."""
    done = torch.zeros_like(rows)
    for i in range(rows.shape[-2]):
        row = rows[..., i : i + 1, :]
        length = row.norm(dim=-1, keepdim=True)
        for _ in range(2 if i else 0):
            before = done[..., :i, :]
            row = row - torch.matmul(torch.matmul(row, before.transpose(-1, -2)), before)
        left = row.norm(dim=-1, keepdim=True)
        # What is left after projection is rounding noise once it is this small beside the row itself.
        enough = left > 1e-6 * length
        done[..., i : i + 1, :] = torch.where(enough, row / left.clamp_min(1e-30), torch.zeros_like(row))
    return done


def _leading_vectors(gram: Tensor, count: int) -> Tensor:
    """Leading `count` eigenvectors of small symmetric matrices (..., p, p), as orthonormal rows (..., count, p).

    By powers of the matrix: a handful of tiny products on every device, where an eigensolver may be slow or missing.
    """
    found: list[Tensor] = []
    for _ in range(count):
        # The trace bounds the largest eigenvalue within 1/p..1, so its 32nd power stays in float32's range.
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        gram = gram / trace.clamp_min(1e-30)
        power = torch.linalg.matrix_power(gram, 32)
        column = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
        vector = power.gather(-2, column.expand(*column.shape[:-1], power.shape[-1]))
        vector = vector / vector.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        found.append(vector)
        value = torch.matmul(torch.matmul(vector, gram), vector.transpose(-1, -2))
        gram = gram - value * vector.transpose(-1, -2) * vector
    return _orthonormal(torch.cat(found, dim=-2))


def _linear_terms(
    k: Tensor, v: Tensor, tables: LayoutTables, ranks: int, k_mean: Tensor | None, spread: bool
) -> Expansion:
    """`expand_blocks` for linear tails: each of k and v is brought into block order once."""
    perm, table = tables.perm, tables.k
    dtype = statistics_dtype(k)
    counts = table.counts[: table.video].to(dtype)

    def new(*shape: int) -> Tensor:
        return torch.zeros(*k.shape[:2], *shape, dtype=dtype, device=k.device)

    blocks, dim = table.video, k.shape[3]
    means = new(blocks, dim) if k_mean is None else k_mean
    k_spread = new(blocks) if spread else None
    v_mean, total = new(blocks, dim), new(dim, dim)
    u, w = new(blocks, ranks, dim), new(blocks, ranks, dim)
    for part in head_chunks(k):
        keys = video_in_order(k[:, part], perm, table)
        if k_mean is None:
            means[:, part] = keys.sum(3) / counts[:, None]
        keys = centre(keys, means[:, part], table)
        if k_spread is not None:
            k_spread[:, part] = keys.square().sum((3, 4)) / counts
        values = video_in_order(v[:, part], perm, table)
        v_mean[:, part] = values.sum(3) / counts[:, None]
        values = centre(values, v_mean[:, part], table)
        products = None
        if ranks and dim <= table.size:
            # As many numbers as the keys, and as many products as their sum alone.
            products = torch.matmul(keys.transpose(-1, -2), values)
            total[:, part] = products.sum(2)
        else:
            total[:, part] = torch.matmul(keys.flatten(2, 3).transpose(-1, -2), values.flatten(2, 3))
        if ranks:
            found_u, found_w = singular_pairs(keys, values, counts, ranks, products)
            u[:, part, :, : found_u.shape[3]] = found_u
            w[:, part, :, : found_w.shape[3]] = found_w
    return Expansion(counts, means, v_mean, total, u if ranks else None, w if ranks else None, k_spread)


def expand_blocks(
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    names: Sequence[TailName],
    *,
    k_mean: Tensor | None = None,
    spread: bool = False,
) -> Expansion:
    """Statistics of every video key block of k, v (B, H, L, D): enough for each tail in `names`.

    Args:
        k_mean: (B, H, g, D) if it is at hand.
        spread: also the spread of the keys, as the draft wants it.
    """
    table = tables.k
    if any(name.startswith("linear") for name in names):
        return _linear_terms(k, v, tables, max(tail_rank(name) for name in names), k_mean, spread)
    k_spread = None
    if spread:
        k_mean, k_spread = block_means_and_spread(k, tables.perm, table)
    elif k_mean is None:
        k_mean = block_means(k, tables.perm, table)
    counts = table.counts[: table.video].to(k_mean.dtype)
    return Expansion(counts, k_mean, block_means(v, tables.perm, table), k_spread=k_spread)


def tail_from(
    expansion: Expansion, tail: TailName | Sequence[TailName], gain: float | tuple[float, ...] = 0.0
) -> Tail | None:
    """The tail named, or one per head, from statistics made for it; None if every head drops its skipped blocks.

    `gain` is the log gain, one or one per head (see `tail_gain`).

    Heads with different tails share one table (a head without a linear term has zeros there), so a kernel needs no
    branch.
    """
    heads, device = expansion.k_mean.shape[1], expansion.k_mean.device
    names = head_tails(tail if isinstance(tail, str) else tuple(tail), heads)
    if all(name == "none" for name in names):
        return None
    log_weight = log_weights(expansion.counts.log(), names, head_gains(gain, heads))
    k_mean, v_mean = expansion.k_mean, expansion.v_mean
    linear = [name.startswith("linear") for name in names]
    if not any(linear) or expansion.total is None:
        return Tail(log_weight, k_mean, v_mean)

    total, ranks = expansion.total, max(tail_rank(name) for name in names)
    u = w = None
    if ranks and expansion.u is not None and expansion.w is not None:
        used = per_head([tail_rank(name) for name in names], device, torch.int64)
        active = (torch.arange(ranks, device=device) < used.unsqueeze(1)).to(total.dtype)
        u = expansion.u[:, :, :, :ranks] * active[None, :, None, :, None]
        w = expansion.w[:, :, :, :ranks].contiguous()
        weighted = u * expansion.counts[:, None, None]
        total = total - torch.matmul(weighted.flatten(2, 3).transpose(-1, -2), w.flatten(2, 3))
    cov = total / expansion.counts.sum() * per_head(linear, device, total.dtype)[None, :, None, None]
    return Tail(log_weight, k_mean, v_mean, cov, u, w)


def log_weights(log_counts: Tensor, tails: Sequence[TailName], gains: Sequence[float]) -> Tensor:
    """`Tail.log_weight` (H, g) from the logs of the blocks' token counts (g,)."""
    offsets = [-math.inf if name == "none" else gain for name, gain in zip(tails, gains)]
    return log_counts + per_head(offsets, log_counts.device, log_counts.dtype)[:, None]


def make_tail(
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    tail: TailName | Sequence[TailName],
    *,
    gain: float | tuple[float, ...] = 0.0,
    k_mean: Tensor | None = None,
) -> Tail | None:
    """Expansion of every video key block of k, v (B, H, L, D) under a tail; None if every head drops its blocks.

    Args:
        tail: one name, or one per head.
        gain: log gain, one or one per head.
        k_mean: (B, H, g, D) if the draft has it already.

    Raises:
        ValueError: if the number of names or gains is not the number of heads.
    """
    names = head_tails(tail if isinstance(tail, str) else tuple(tail), k.shape[1])
    if all(name == "none" for name in names):
        return None
    return tail_from(expand_blocks(k, v, tables, names, k_mean=k_mean), names, gain)
