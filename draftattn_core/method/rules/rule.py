"""What a selection rule is: `select(call) -> keep`, and what it may offer beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from ....kernels.types import Limits
from ...geometry.layout import LayoutTables
from ..policy import Policy
from .call import HeadOrder, RuleCall


class Ranking(Protocol):
    """A rule that looks at the draft's scores alone. Kernels have a form of their own of each (`kernels.select`)."""

    @property
    def form(self) -> str:
        """Name of the kernels' form, a key of `kernels.select.FORMS`."""

    def limits(self, tables: LayoutTables, policy: Policy, densities: tuple[float, ...]) -> Limits:
        """What heads of these densities may keep."""

    def keep(self, scores: Tensor, forced: Tensor, limits: Limits) -> Tensor:
        """Kept pairs of scores (B, H, R, C), bool of the same shape; `forced` (R, C) bool are always kept."""


class Attended(NamedTuple):
    """An answered call.

    Attributes:
        out: (B, H, L, D) in the host's token order.
        keep: (B, H, q blocks, k blocks) bool, the block pairs that were computed exactly for it: what is counted as
            work. All False for a head that was answered without attention.
    """

    out: Tensor
    keep: Tensor


Default = Callable[[RuleCall], Attended]
"""Computes a call, or what a rule made of it: its order, its selection, its tail, by the chosen backend."""


@dataclass(frozen=True)
class Rule:
    """One way to choose the block pairs that are computed exactly.

    Attributes:
        select: kept block pairs (B, H, q blocks, k blocks) bool of a call, computed on its device without waiting for
            it; extra-token blocks included and always kept.
        ranking: where the rule looks at the draft's scores alone, so that kernels can select by it. Without one the
            core selects, and kernels walk lists of the result.
        order: gives heads a token order of their own, None for the host's; `select` then sees the reordered call. The
            layout's blocks are cut from that order.
        attend: answers the call instead of the default, None to leave it to that. It may call the default any number
            of times, with changed calls.
    """

    select: Callable[[RuleCall], Tensor]
    ranking: Ranking | None = None
    order: Callable[[RuleCall], HeadOrder | None] | None = None
    attend: Callable[[RuleCall, Default], Attended | None] | None = None
