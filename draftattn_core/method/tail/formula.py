"""The tail's formula for the torch backends, and its cost. `backends.reference` states it anew: it is the truth.

For scaled queries s q and skipped blocks of weights p_j = exp(log_weight_j + s q.k_j), up to the softmax's maximum, the
numerator gains sum_j p_j (v_j + (s q.u_j) w_j) + (sum_j p_j) s q C, the denominator sum_j p_j (design.md section 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.types import Tail
from ..policy import TailName, tail_rank

_LINEAR: tuple[TailName, ...] = ("linear0", "linear1", "linear2")


def skipped_logits(scaled: Tensor, tail: Tail) -> Tensor:
    """Logits (..., n, g) of all blocks as if skipped, for scaled queries (..., n, D); see `add_skipped`."""
    return torch.matmul(scaled, tail.k_mean.transpose(-1, -2)).add_(tail.log_weight.unsqueeze(-2))


def add_skipped(out: Tensor, weights: Tensor, scaled: Tensor, tail: Tail) -> Tensor:
    """Add the skipped blocks to the numerator `out` of rows, in place; their part (..., n, 1) of the denominator.

    Args:
        out, scaled: (n, D) of one head, or (h, n, D): the rows so far, and their queries times the scale.
        weights: (n, g) or (h, n, g), in the units of `out`; 0 for blocks that are kept.
        tail: of the head, or of the heads (`Tail.of_batch`).
    """
    _add_product(out, weights, tail.v_mean)
    mass = weights.sum(-1, keepdim=True)
    add_linear_terms(out, weights, mass, scaled, tail)
    return mass


def add_linear_terms(out: Tensor, weights: Tensor, mass: Tensor, scaled: Tensor, tail: Tail) -> None:
    """`add_skipped` without the mean values; `mass` is the sum of the weights."""
    if tail.cov is not None:
        out.addcmul_(mass, torch.matmul(scaled, tail.cov))
    if tail.u is not None and tail.w is not None:
        for rank in range(tail.ranks):
            along = torch.matmul(scaled, tail.u[..., rank, :].transpose(-1, -2))
            _add_product(out, weights * along, tail.w[..., rank, :])


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b, in place."""
    if out.dim() == 2:
        out.addmm_(a, b)
    else:
        out.baddbmm_(a, b)


def name_of(tail: Tail | None) -> TailName:
    """The dearest tail that some head of a call may have, by the terms that are there."""
    if tail is None:
        return "none"
    return "mean" if tail.cov is None else _LINEAR[tail.ranks]


def tail_key_equivalents(tail: TailName, blocks: int, dim: int) -> float:
    """What a tail costs per query row, in keys computed exactly (one key = one dot product and one value added).

    The pooled keys count once, each rank once more (one product with u, one with w), the average matrix dim / 2.
    """
    if tail == "none":
        return 0.0
    return blocks * (1 + tail_rank(tail)) + (dim / 2 if tail.startswith("linear") else 0.0)
