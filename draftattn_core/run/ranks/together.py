"""What the ranks of a run decide together."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..error_curve import ErrorCurves
from ..report import DenseReason, Position
from .ranks import NOTHING, About, OtherRankFailed, Ranks


def agreed(ranks: Ranks | None, reason: DenseReason | None) -> DenseReason | None:
    """Why a call is dense on every rank, from why it would be dense on this one: one takes all with it."""
    if ranks is None:
        return reason
    try:
        ranks.exchange(About.CALL, NOTHING, reason)
    except OtherRankFailed as failed:
        return failed.reason
    return None


def one_deal(ranks: Ranks, order: tuple[int, ...] | None, failure: DenseReason | None) -> tuple[int, ...] | None:
    """How heads are dealt for a call: as rank 0 says, for another machine may round budgets otherwise."""
    told = NOTHING if order is None else torch.tensor(order, dtype=torch.float64)
    try:
        said = ranks.exchange(About.DEAL, told, failure)[0]
    except OtherRankFailed:
        return None
    return tuple(int(head) for head in said) or None


def of_all_heads(ranks: Ranks, curves: ErrorCurves | None, position: Position) -> ErrorCurves | None:
    """The curves of every head of a layer, from those of this rank's heads, on the CPU.

    Args:
        curves: heads of this rank, in float64 on the CPU; None if they could not be measured.
        position: of the call; says which heads these are.

    Returns:
        The same on every rank, in the order of the layer's heads; None if one of them has none.
    """
    told = NOTHING
    if curves is not None:
        numbers = torch.tensor(position.numbers(curves.heads), dtype=torch.float64)
        columns = numbers[:, None], curves.kept, curves.squared, curves.gains, curves.norms[:, None]
        told = torch.cat([*columns, curves.tails[:, None].double()], 1).flatten()
    heard = ranks.exchange(About.CURVES, told)
    if curves is None or not all(len(said) for said in heard):
        return None
    points = len(curves.densities)
    table = torch.cat([said.view(-1, 3 * points + 3) for said in heard])
    table = table[table[:, 0].argsort(), 1:]
    kept, squared, gains, rest = (table[:, at : at + points] for at in range(0, 4 * points, points))
    return replace(
        curves, kept=kept, squared=squared, gains=gains, norms=rest[:, 0], tails=rest[:, 1].to(curves.tails.dtype)
    )


@dataclass(frozen=True, eq=False)
class CachesTogether:
    """The step caches of all ranks (see `Together`)."""

    ranks: Ranks

    def summed(self, sums: Tensor) -> Tensor:
        """See `Together`. Ranks that hold the same count it as many times, which ratios do not see.

        Args:
            sums: float32, any shape and device; waits for it.

        Returns:
            Of its shape, on the CPU.
        """
        heard = self.ranks.exchange(About.SUMS, sums.detach().double().cpu().flatten())
        return torch.stack(heard).sum(0).float().view(sums.shape)

    def all_skip(self, skips: bool) -> bool:
        """See `Together`."""
        heard = self.ranks.exchange(About.SKIP, torch.tensor([float(skips)], dtype=torch.float64))
        return all(bool(said[0]) for said in heard)

    def failed(self, error: Exception) -> None:
        """See `Together`."""
        if isinstance(error, OtherRankFailed):
            return
        with suppress(OtherRankFailed):
            self.ranks.exchange(About.SKIP, NOTHING, DenseReason.ERROR)


def most_errors(ranks: Ranks, errors: int, failed: bool) -> tuple[int, bool]:
    """Errors of the rank that had most, and whether any rank failed to read the evaluation that begins."""
    heard = ranks.exchange(About.EVALUATION, torch.tensor([float(errors), float(failed)], dtype=torch.float64))
    return int(max(said[0] for said in heard)), any(bool(said[1]) for said in heard)
