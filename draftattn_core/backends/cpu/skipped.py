"""What the skipped blocks of a head make of its rows, several query blocks at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....kernels.types import Tail
from ..request import AttendRequest

# Tail scores of the rows that are computed at once: in float32 they stay in a core's own cache, in 16 bits every
# product costs 0.02 ms before it begins, so there are fewer of them.
_BYTES = 1 << 19
_BYTES_16 = 1 << 21


def tail_of(request: AttendRequest, batch: int, head: int) -> Tail | None:
    """The tail of one head without terms that are zero for it; None if it drops its skipped blocks."""
    if request.tail is None:
        return None
    tail = request.tail.of_batch(batch, head)
    if tail.log_weight[0] == -torch.inf:
        return None
    if tail.u is not None and not tail.u.any():
        tail = replace(tail, u=None, w=None)
    return replace(tail, cov=None) if tail.u is None and tail.cov is not None and not tail.cov.any() else tail


@dataclass
class _InTurn:
    """The terms of a tail, one product after the other, all in the queries' own dtype."""

    tail: Tail
    along: Tensor

    @classmethod
    def of(cls, tail: Tail, rows: int) -> _InTurn:
        return cls(tail, tail.k_mean.new_empty(rows, tail.k_mean.shape[0]))

    def __call__(self, weights: Tensor, scaled: Tensor, mass: Tensor, out: Tensor) -> None:
        """Write the attention (n, D) for weights (n, g), scaled queries (n, D) and the weights' sums (n, 1), not 0."""
        tail, along = self.tail, self.along[: len(scaled)]
        torch.mm(weights, tail.v_mean, out=out)
        if tail.cov is not None:
            out.addcmul_(mass, torch.mm(scaled, tail.cov))
        if tail.u is not None and tail.w is not None:
            for rank in range(tail.ranks):
                torch.mm(scaled, tail.u[:, rank].t(), out=along).mul_(weights)
                out.addmm_(along, tail.w[:, rank])
        out.div_(mass)


@dataclass
class _AtOnce:
    """The terms of a tail as one product in 16 bits, which is rounded once.

    Attributes:
        along: (ranks, g, D) left vectors.
        table: (g + ranks * g + D, D) mean values, right vectors of every rank and the common covariance, one below the
            other; what the tail has not is left out.
        factors: (rows, g + ranks * g + D) storage for what they are multiplied with.
    """

    along: Tensor
    table: Tensor
    factors: Tensor

    @classmethod
    def of(cls, tail: Tail, rows: int, dtype: torch.dtype) -> _AtOnce:
        (blocks, dim), tables = tail.k_mean.shape, [tail.v_mean]
        along = tail.k_mean.new_empty((0, blocks, dim))
        if tail.u is not None and tail.w is not None:
            along = tail.u.transpose(0, 1)
            tables.append(tail.w.transpose(0, 1).reshape(-1, dim))
        if tail.cov is not None:
            tables.append(tail.cov)
        table = torch.cat(tables).to(dtype)
        return cls(along.to(dtype), table, table.new_empty(rows, len(table)))

    def __call__(self, weights: Tensor, scaled: Tensor, mass: Tensor, out: Tensor) -> None:
        """As `_InTurn`."""
        (ranks, blocks, dim), factors = self.along.shape, self.factors[: len(scaled)]
        torch.div(weights, mass, out=factors[:, :blocks])
        if ranks:
            low = scaled.to(factors.dtype)
            for rank in range(ranks):
                place = factors[:, (1 + rank) * blocks : (2 + rank) * blocks]
                torch.mm(low, self.along[rank].t(), out=place).mul_(factors[:, :blocks])
        if len(self.table) > (1 + ranks) * blocks:
            factors[:, -dim:] = scaled
        out.copy_(torch.mm(factors, self.table))


def skipped(
    scaled: Tensor, keep: Tensor, q_size: int, tail: Tail, *, products: torch.dtype, columns: int = 1
) -> tuple[Tensor, Tensor]:
    """What the skipped blocks alone make of the video rows of a head, several query blocks at once.

    Kept blocks weigh nothing, but they count for a row's maximum, which costs nothing: their tokens together weigh at
    least what their mean key does (Jensen), so that what underflows beside it does not matter beside them either.

    Args:
        scaled: (rows, D) queries in block order, times the scale.
        keep: (q blocks, g) bool; q_size: rows of a query block, the last may be short.
        products: what weights are multiplied in with the tail's tables; scores and softmax are as `scaled`.
        columns: of the second tensor.

    Returns:
        (rows, D) their attention and (rows, columns) -inf but for the first column, which is the logarithm of their
        mass where a row skips anything.
    """
    rows, blocks = scaled.shape[0], tail.k_mean.shape[0]
    same = products == scaled.dtype
    step = max(1, (_BYTES if same else _BYTES_16) // (q_size * blocks * scaled.itemsize))
    at_once = min(rows, step * q_size)
    terms = _InTurn.of(tail, at_once) if same else _AtOnce.of(tail, at_once, products)
    out, free = torch.empty_like(scaled), (~keep).to(scaled.dtype)
    levels = scaled.new_full((rows, columns), -torch.inf)
    scores = scaled.new_empty(at_once, blocks)
    cuts = list(range(0, rows // q_size, step))
    parts = [(slice(first * q_size, min(rows // q_size, first + step) * q_size), first) for first in cuts]
    if rows % q_size:
        parts.append((slice(rows - rows % q_size, rows), rows // q_size))
    for part, first in parts:
        here = scaled[part]
        weights = torch.addmm(tail.log_weight, here, tail.k_mean.t(), out=scores[: len(here)])
        highest = weights.amax(1, keepdim=True)
        weights.sub_(highest).exp_()
        of_block = weights.view(-1, min(q_size, len(here)), blocks)
        of_block.mul_(free[first : first + len(of_block), None])
        mass = weights.sum(1, keepdim=True)
        levels[part, :1] = highest + mass.log()
        terms(weights, here, mass.clamp_min_(torch.finfo(mass.dtype).tiny), out[part])
    return out, levels
