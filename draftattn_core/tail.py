"""The tail: what stands in for skipped blocks inside the same softmax (design.md section 1).

For a query q, scale s and a skipped block j of n_j tokens with means k_j, v_j and cross-covariance
C_j = mean over its tokens of (k - k_j)(v - v_j)^T, the block counts p_j = n_j exp(s q.k_j) in the denominator and
p_j (v_j + s q C_j) in the numerator: the first terms of its Taylor expansion around the mean key.
`mean` drops C_j (the term of Sol-Attn, arXiv 2607.24027); `linear0` replaces it by its average over blocks (the term
of PISA, arXiv 2602.01077); `linear1` and `linear2` keep one or two leading singular pairs u w^T of each block's C_j
and average the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .blocks import block_means, centre, head_chunks, video_in_order
from .layout import BlockTable, LayoutTables
from .policy import TailName, head_tails, tail_rank

POWER_ITERATIONS = 3


@dataclass(frozen=True)
class Tail:
    """Expansion of every video key block; float32 (float64 for float64 inputs).

    Attributes:
        log_count: (H, g) log n_j, -inf for heads whose tail is `none`.
        k_mean, v_mean: (B, H, g, D).
        cov: (B, H, D, D) average cross-covariance of what the ranks leave, keys x values; zero for heads without a
            linear term; None where no head has one.
        u, w: (B, H, g, ranks, D) singular pairs, the singular value folded into w; zero where a head uses fewer ranks;
            None where no head uses any.
    """

    log_count: Tensor
    k_mean: Tensor
    v_mean: Tensor
    cov: Tensor | None = None
    u: Tensor | None = None
    w: Tensor | None = None

    @property
    def ranks(self) -> int:
        return 0 if self.u is None else self.u.shape[3]


def singular_pairs(keys: Tensor, values: Tensor, counts: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """Leading `ranks` singular pairs of C = keys^T values / count, without forming C.

    Args:
        keys, values: (..., n, D) deviations from the block means; slots past `counts` hold zeros.
        counts: (...,) tokens per block.

    Returns:
        u (..., ranks, D) orthonormal rows and w (..., ranks, D) with C ~ sum_r u_r w_r^T. Subspace iteration from the
        value deviations of the tokens with the largest |k||v|: each step costs two products with n x D matrices.
        A block without spread gives zeros.
    """
    weight = keys.norm(dim=-1) * values.norm(dim=-1)
    lead = weight.topk(min(ranks, keys.shape[-2]), dim=-1).indices
    w = values.gather(-2, lead.unsqueeze(-1).expand(*lead.shape, values.shape[-1]))
    u = w
    for _ in range(POWER_ITERATIONS):
        u = _orthonormal(torch.matmul(torch.matmul(w, values.transpose(-1, -2)), keys))
        w = torch.matmul(torch.matmul(u, keys.transpose(-1, -2)), values)
    return u, w / counts[..., None, None]


def _orthonormal(rows: Tensor) -> Tensor:
    """Gram-Schmidt on the few rows of (..., r, D), twice for accuracy; a row without length becomes zero."""
    done: list[Tensor] = []
    for i in range(rows.shape[-2]):
        row = rows[..., i, :]
        length = row.norm(dim=-1, keepdim=True)
        for _ in range(2):
            for other in done:
                row = row - (row * other).sum(-1, keepdim=True) * other
        left = row.norm(dim=-1, keepdim=True)
        # What is left after projection is rounding noise once it is this small beside the row itself.
        done.append(torch.where(left > 1e-6 * length, row / left.clamp_min(1e-30), torch.zeros_like(row)))
    return torch.stack(done, dim=-2)


def _linear_terms(
    k: Tensor, v: Tensor, k_mean: Tensor, v_mean: Tensor, perm: Tensor, table: BlockTable, ranks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Token-weighted sum over blocks of n_j C_j (B, H, D, D), and u, w (B, H, g, ranks, D)."""
    batch, heads, blocks, dim = k_mean.shape
    total = k_mean.new_empty(batch, heads, dim, dim)
    u = k_mean.new_zeros(batch, heads, blocks, ranks, dim)
    w = torch.zeros_like(u)
    counts = table.counts[:blocks].to(k_mean.dtype)
    for part in head_chunks(k):
        keys = centre(video_in_order(k[:, part], perm, table), k_mean[:, part], table)
        values = centre(video_in_order(v[:, part], perm, table), v_mean[:, part], table)
        total[:, part] = torch.matmul(keys.flatten(2, 3).transpose(-1, -2), values.flatten(2, 3))
        if ranks:
            found_u, found_w = singular_pairs(keys, values, counts, ranks)
            u[:, part, :, : found_u.shape[3]] = found_u
            w[:, part, :, : found_w.shape[3]] = found_w
    return total, u, w


def make_tail(
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    tail: TailName | Sequence[TailName],
    *,
    k_mean: Tensor | None = None,
) -> Tail | None:
    """Expansion of every video key block of k, v (B, H, L, D); None if every head drops its skipped blocks.

    Args:
        tail: one name, or one per head: heads with different tails share one table (a head without a linear term has
            zeros there), so a kernel needs no branch.
        k_mean: (B, H, g, D) if the draft has it already.
    """
    heads, table = k.shape[1], tables.k
    names = head_tails(tail if isinstance(tail, str) else tuple(tail), heads)
    if all(name == "none" for name in names):
        return None
    if k_mean is None:
        k_mean = block_means(k, tables.perm, table)
    v_mean = block_means(v, tables.perm, table)
    counts = table.counts[: table.video].to(k_mean.dtype)
    device = k.device
    enters = torch.tensor([name != "none" for name in names], device=device)
    log_count = torch.where(enters[:, None], counts.log(), counts.new_tensor(-torch.inf))
    plain = Tail(log_count=log_count, k_mean=k_mean, v_mean=v_mean)
    if not any(name.startswith("linear") for name in names):
        return plain

    ranks = max(tail_rank(name) for name in names)
    total, u, w = _linear_terms(k, v, k_mean, v_mean, tables.perm, table, ranks)
    used = torch.tensor([tail_rank(name) for name in names], device=device)
    active = (torch.arange(ranks, device=device) < used[:, None]).to(u.dtype)
    u = u * active[None, :, None, :, None]
    weighted = u * counts[:, None, None]
    total = total - torch.matmul(weighted.flatten(2, 3).transpose(-1, -2), w.flatten(2, 3))
    linear = torch.tensor([name.startswith("linear") for name in names], device=device, dtype=total.dtype)
    cov = total / counts.sum() * linear[None, :, None, None]
    if not ranks:
        return replace(plain, cov=cov)
    return replace(plain, cov=cov, u=u, w=w)


def tail_key_equivalents(tail: TailName, blocks: int, dim: int) -> float:
    """What a tail costs per query row, in keys computed exactly (one key = one dot product and one value added).

    The pooled keys count once, each rank once more (one product with u, one with w), the average matrix dim / 2.
    """
    if tail == "none":
        return 0.0
    return blocks * (1 + tail_rank(tail)) + (dim / 2 if tail.startswith("linear") else 0.0)
