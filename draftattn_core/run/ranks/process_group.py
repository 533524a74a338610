"""Ranks that are the processes of a torch process group. Their words go over gloo, from CPU to CPU, on a group of
their own: no device waits for them, and a rank that is gone is noticed after a time that we choose."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from ..report import DenseReason
from .lost import RankLostError
from .ranks import NOTHING, About, check_openings, opening

# A rank that compiles kernels keeps the others waiting for as long.
DEFAULT_TIMEOUT_S = 600.0
# gloo says it in words alone.
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting", "pair closure")


class ProcessRanks:
    """The ranks of a process group (see `Ranks`).

    Args:
        group: a torch process group that this process is in; every process of it makes its `ProcessRanks` now.
        timeout_s: how long a rank may keep the others waiting, in seconds.

    Raises:
        RankLostError: if a rank does not join in.
    """

    def __init__(self, group: Any = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        import torch.distributed as dist

        members: Sequence[int] = dist.get_process_group_ranks(group or dist.group.WORLD)
        self.rank = members.index(dist.get_rank())
        self.size = len(members)
        self.timeout_s = timeout_s
        self._all_gather = dist.all_gather
        self._lost = False
        try:
            self._group = dist.new_group(
                list(members),
                backend="gloo",
                timeout=timedelta(seconds=timeout_s),
                use_local_synchronization=True,
            )
        except RuntimeError as error:
            raise self._is_lost() from error

    def exchange(self, about: About, numbers: Tensor, failure: DenseReason | None = None) -> list[Tensor]:
        """See `Ranks`."""
        sizes = check_openings(self._gather(opening(about, numbers, failure)))
        if not max(sizes):
            return [NOTHING for _ in sizes]
        padded = torch.zeros(max(sizes), dtype=torch.float64)
        padded[: numbers.numel()] = numbers
        return [said[:size] for said, size in zip(self._gather(padded), sizes, strict=True)]

    def _gather(self, numbers: Tensor) -> list[Tensor]:
        said = [torch.empty_like(numbers) for _ in range(self.size)]
        if self._lost:
            raise self._is_lost()
        try:
            self._all_gather(said, numbers, group=self._group)
        except RuntimeError as error:
            raise self._is_lost() from error
        return said

    def _is_lost(self) -> RankLostError:
        # Nothing more is said to ranks that may wait for something else by now.
        self._lost = True
        return RankLostError(self.lost)

    @property
    def lost(self) -> str:
        """What is said where another rank is gone."""
        return (
            f"rank {self.rank} of {self.size}: another rank ended or did not answer within {self.timeout_s:g} s, so "
            "this run ends here; the other rank's own output says why"
        )


def is_lost(error: BaseException) -> bool:
    """Whether a collective of torch's raised this because another rank is gone or silent."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(mark in text for mark in _LOST)
