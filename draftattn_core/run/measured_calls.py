"""The calls whose error curves a run takes: sparse ones are served by what was found, dense ones only looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import Attention, check_inputs
from ..backends.call_kind import CallKind
from ..backends.registry import tails_served
from ..backends.request import AttendRequest
from ..geometry.grid import TokenGrid
from ..geometry.layout import Layout, TableCache
from ..method.policy import TAILS, Policy, TailName
from ..phrase import Phrase, Text
from .plan import Plan
from .probe import HeadTails
from .ranks.lost import RankLostError
from .ranks.ranks import NOTHING, About, OtherRankFailed
from .report import DenseReason, Position, RunReport
from .settings import Settings
from .share import tails_at
from .spending import CallShape, Spending


@dataclass(frozen=True, eq=False)
class MeasuredCalls:
    """Between a run's calls and its `Spending`; see `Run` for the attributes.

    Attributes:
        tell: keeps a message for the user and logs it.
    """

    settings: Settings
    spending: Spending | None
    plan: Plan
    report: RunReport
    cache: TableCache
    tell: Callable[[Text], None]

    def meet(self, position: Position, q: Tensor, grid: TokenGrid, extra: int) -> None:
        """Told every call before its policy is asked for."""
        if self.spending is not None:
            heads = position.all_heads or q.shape[1]
            self.spending.meet(position, CallShape(position.layers, heads, q.shape[3], grid, extra))

    def served(
        self, result: Attention, policy: Policy, position: Position, again: Callable[[Attention, Policy], Attention]
    ) -> Attention | None:
        """The sparse call by what was measured, redone where that gives it other tails, or densities at once.

        Args:
            result: of `policy`.
            again: the same call under another policy.

        Returns:
            None where measured figures have no say in the call.
        """
        spending, request = self.spending, result.request
        if spending is None:
            return None
        heads = request.q.shape[1]
        before = spending.share(position, heads)
        if not spending.wants(position):
            return None if before is None else result
        curves = spending.measure(request, position, self._tails(request, policy, result.backend))
        if curves is None or not self.settings.spends:
            return None
        after = spending.share(position, heads)
        if after is None:
            found = tails_at(curves, policy, heads, gains=self.settings.auto_gain)
            self.plan.keep(position, heads, found)
            wanted = found.put_into(policy)
        else:
            found, wanted = after.found, after.put_into(policy) or policy.with_density(1.0)
        self.report.keep_tails(position, found.names, found.gains)
        at_once = before is None or self.settings.max_error > 0.0
        return again(result, wanted) if at_once and wanted != policy else result

    def dense(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, position: Position, key_bias: Tensor | None
    ) -> None:
        """Measure a call that runs dense, for a profile. Never raises."""
        spending = self.spending
        if spending is None or not spending.wants(position, dense=True) or q.shape[2] != layout.tokens:
            return
        try:
            check_inputs(q, k, v, layout, key_bias)
            tables = self.cache.get(layout, q.device)
            keep = torch.ones(*q.shape[:2], tables.q.total, tables.k.total, dtype=torch.bool, device=q.device)
            request = AttendRequest(q, k, v, tables, keep, None, key_bias, q.shape[-1] ** -0.5)
            asked = HeadTails.of(self.settings.policy, q.shape[1]).names
            spending.measure(request, position, TAILS if self.settings.auto_tail else tuple(dict.fromkeys(asked)))
        except (OtherRankFailed, RankLostError):
            raise
        except Exception as error:
            self.tell(
                Phrase(
                    "note_dense_not_recorded",
                    "nothing was recorded of a dense call: {error}",
                    error=f"{type(error).__name__}: {error}",
                )
            )
            if spending.ranks is not None:
                spending.ranks.exchange(About.CURVES, NOTHING, DenseReason.ERROR)

    def _tails(self, request: AttendRequest, policy: Policy, backend: str) -> tuple[TailName, ...]:
        """Tails that a head of this call may have."""
        settings = self.settings
        if not settings.auto_tail:
            return tuple(dict.fromkeys(HeadTails.of(settings.policy, request.q.shape[1]).names))
        biased = request.key_bias is not None
        return tails_served(
            backend, CallKind.of(request.q, settings.q_block, settings.k_block, policy, biased=biased), TAILS
        )
