"""What the ranks of one run say to each other.

All of it is a sequence of exchanges, the same on every rank. Whatever the ranks decide together follows from what all
of them said in an exchange, so it is the same everywhere. A rank on which something failed says so instead of its
numbers: then that exchange raises on every rank, and the work under way ends there for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from ..report import DenseReason


class OtherRankFailed(Exception):
    """Another rank said that it failed.

    Attributes:
        reason: why, the same on every rank.
    """

    def __init__(self, reason: DenseReason) -> None:
        super().__init__(f"another rank failed: {reason}")
        self.reason = reason


class About(IntEnum):
    """What an exchange is about."""

    EVALUATION = 0
    CALL = 1
    CURVES = 2
    SUMS = 3
    SKIP = 4
    REPORT = 5
    DEAL = 6


class Ranks(Protocol):
    """The ranks of a run.

    Attributes:
        rank: of this process, from 0; size: how many there are.
    """

    rank: int
    size: int

    def exchange(self, about: About, numbers: Tensor, failure: DenseReason | None = None) -> list[Tensor]:
        """Say `numbers` to all ranks and hear theirs. Waits for the slowest rank.

        Args:
            about: what the numbers are; ranks that speak of different things have failed.
            numbers: float64 on the CPU, (n,); n may differ between ranks.
            failure: why this rank has no numbers; None if all went well.

        Returns:
            What each rank said, in order of ranks, as it was said: bit for bit the same on all of them.

        Raises:
            OtherRankFailed: if any rank said that it failed, this one too; with one reason for all.
            RankLostError: if a rank does not answer.
        """


NOTHING = torch.zeros(0, dtype=torch.float64)
_REASONS = tuple(DenseReason)


def opening(about: About, numbers: Tensor, failure: DenseReason | None) -> Tensor:
    """What a rank says first in an exchange: (3,) int64."""
    code = 0 if failure is None else 1 + _REASONS.index(failure)
    return torch.tensor([code, int(about), numbers.numel()], dtype=torch.int64)


def check_openings(said: Sequence[Tensor]) -> list[int]:
    """How many numbers each rank is going to say; raises `OtherRankFailed` if one failed or they are not together."""
    codes, about, sizes = (list(column) for column in zip(*(opened.tolist() for opened in said), strict=True))
    if max(codes):
        raise OtherRankFailed(_REASONS[max(codes) - 1])
    if len(set(about)) > 1:
        raise OtherRankFailed(DenseReason.ERROR)
    return sizes
