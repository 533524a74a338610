"""What the step caches of a run over several ranks tell each other, so that they decide as one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Together(Protocol):
    """The other ranks, as a step cache sees them. Every rank calls the same in the same order."""

    def summed(self, sums: Tensor) -> Tensor:
        """Sums over what all ranks hold, of sums over what this one holds; the same bits on every rank."""

    def all_skip(self, skips: bool) -> bool:
        """Whether every rank skips the evaluation. Ends what is said about it."""

    def failed(self, error: Exception) -> None:
        """Tell the others of an error, in place of what is left to say about the evaluation."""
