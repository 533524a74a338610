"""FlexAttention where it takes block lists only and returns the output only: the rest goes into its matrix products.

On the CPU (torch 2.13) compiled FlexAttention returns no log-sum-exp, which a tail is merged by, and functions that
read a tensor of changing length may not compile (Inductor names a size of that tensor by replacing text). So:
the bias on keys, and keys that do not count, are one more dimension of K, against a one in Q;
the log-sum-exp comes from a sink, one more key with the logit `level` in each row, and from two more channels of V
that tell how the row's mass parts between real keys (kept) and sink: log-sum-exp = level + log(kept / sink).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....kernels.types import Tail

SCRATCH_BYTES = 64 << 20


def sink_levels(queries: Tensor, tail: Tail) -> Tensor:
    """Per row, a sink logit beside which neither kept keys nor tail underflow: (B, H, rows), finite.

    The level is the pooled log-sum-exp over all blocks, kept ones too: no less than that of the tail, and (but for the
    tail's gain) no more than that of row and tail together, because a block's mean logit bounds the log-mean of its
    exponentials from below. So a mass that underflows beside the sink's, on either side, would not count in the
    merged row either.

    Args:
        queries: (B, H, rows, D), scaled.
        tail: of these heads; for one that drops its skipped blocks the level is as low as can be.
    """
    batch, heads, _, _ = queries.shape
    at_once = max(1, SCRATCH_BYTES // (batch * heads * tail.k_mean.shape[2] * 2 * queries.element_size()))
    pooled, offset = tail.k_mean.transpose(-1, -2), tail.log_weight[None, :, None]
    parts = torch.split(queries, at_once, dim=2)
    levels = [torch.matmul(rows, pooled).add_(offset).logsumexp(-1) for rows in parts]
    return torch.cat(levels, dim=-1).clamp_min(torch.finfo(queries.dtype).min)


def fold(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, levels: Tensor | None, k_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V for which plain attention at scale 1 is what is wanted.

    Args:
        q: (B, H, q slots, D) float32 or float64, scaled.
        k, v: (B, H, k slots, D), same dtype.
        bias: (B, k slots) added to the logits; -inf hides a key. Every row must see some key that is not hidden.
        levels: (B, H, q slots) finite, for a sink: K and V then end in one more block, whose first key it is; None
            for none.
    """
    lowest = torch.finfo(k.dtype).min
    columns = bias.to(k.dtype).clamp_min(lowest)[:, None, :, None].expand(*k.shape[:3], 1)
    k, ones = torch.cat([k, columns], dim=-1), torch.ones_like(q[..., :1])
    if levels is None:
        return torch.cat([q, ones], dim=-1), k, v
    slots = k.shape[2]
    k, v = pad(k, (0, 1, 0, k_size)), pad(v, (0, 2, 0, k_size))
    k[:, :, slots, -1] = 1
    k[:, :, slots + 1 :, -2] = lowest
    v[:, :, :slots, -2] = 1
    v[:, :, slots, -1] = 1
    return torch.cat([q, ones, levels.unsqueeze(-1)], dim=-1), k, v


def unfold(rows: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Output over the real keys (B, H, rows, D) and its log-sum-exp (B, H, rows); -inf where they held nothing (the
    output there is not a number)."""
    kept, sink = rows[..., -2], rows[..., -1]
    # Where the sink vanishes beside the row, so does any tail, whatever the sum.
    lse = levels + (kept / sink.clamp_min(torch.finfo(rows.dtype).tiny)).log()
    return rows[..., :-2] / kept.unsqueeze(-1), lse
