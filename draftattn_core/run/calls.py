"""The video self-attention calls of a run: each is served sparse where the plan allows it, dense with a reason else.

Nothing raised in the sparse path leaves here: the call goes dense and is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..attention import Attention
from ..backends.registry import NoBackendError
from ..backends.request import OUT_OF_MEMORY
from ..geometry.grid import TokenGrid
from ..geometry.layout import Layout, TableCache
from ..method.policy import Policy, WrongHeadsError
from ..phrase import Phrase, Text, said
from .events import CallDone
from .failures import Failures
from .fingerprint import ModelName
from .measured_calls import MeasuredCalls
from .plan import Plan
from .ranks.lost import RankLostError
from .ranks.ranks import OtherRankFailed, Ranks
from .ranks.together import agreed
from .ready import ReadyBackends, free
from .report import Call, DenseReason, Position
from .settings import Settings
from .sparse_calls import SparseCalls, calibrated_masks
from .spending import Spending
from .stopwatch import stopwatch, times_launches_only
from .telling import Telling
from .votes import Votes


@dataclass(eq=False)
class _Done:
    """A call served sparse: its output in the host's form, how it counts, and what the core made."""

    out: Tensor
    call: Call
    result: Attention


@dataclass(eq=False)
class Calls:
    """Serves the calls of one run. Thread-safe.

    Attributes:
        settings: what the user chose, or the nearest that the backend of this machine can serve.
        model, ranks: see `Run`.
        cache: index tables of the run.
        telling, failures, votes: those of the run.
        plan: policy of every call.
        spending: budgets by measured error, and what is measured for a profile; None where neither was asked for.

    Raises:
        ProfileError: when made, if calibrated masks do not fit the model.
    """

    settings: Settings
    model: ModelName
    cache: TableCache
    telling: Telling
    failures: Failures
    votes: Votes
    ranks: Ranks | None = None
    plan: Plan = field(init=False)
    spending: Spending | None = field(init=False)
    _measured: MeasuredCalls = field(init=False)
    _sparse: SparseCalls = field(init=False)
    _ready: ReadyBackends = field(default_factory=ReadyBackends)

    def __post_init__(self) -> None:
        self._set_up()

    def _set_up(self) -> None:
        """Make what serves sparse calls by the settings."""
        settings, report, tell = self.settings, self.telling.report, self.telling.tell
        spends = settings.spends or settings.record
        self.spending = Spending(settings, self.model, self.telling.note, report.budgets) if spends else None
        self.join(self.ranks)
        self.plan = Plan(settings.policy, settings.schedule, self.spending)
        self._measured = MeasuredCalls(settings, self.spending, self.plan, report, self.cache, tell)
        masks = calibrated_masks(settings, self.model, self.telling.note)
        self._sparse = SparseCalls(settings, self.plan, report, self.cache, self._measured, masks, tell)

    def join(self, ranks: Ranks | None) -> None:
        """Decide with these ranks from now on; with none where it is None."""
        self.ranks = ranks
        if self.spending is not None:
            self.spending.ranks = ranks

    def clear(self) -> None:
        """Free the tables and what the rule remembers."""
        self.cache.clear()
        self._sparse.clear()

    def _make_ready(self, q: Tensor, grid: TokenGrid, biased: bool) -> None:
        """Prepare the backend for calls like this one, and ask of it what it can serve from then on."""
        if self.failures.stood_aside or grid.tokens < self.settings.min_tokens:
            return
        wait, note = self.telling.wait, self.telling.note
        near = self._ready.prepare(self.settings, q, biased, wait, note)
        if near is None:
            return
        try:
            settings = self.settings.nearest(near)
            if settings != self.settings:
                # Before anything was decided or measured by the old ones.
                self.settings = settings
                self._set_up()
                self._ready.prepare(settings, q, biased, wait, note)
        except Exception as error:
            self.failures.raised(error)

    def dense(
        self,
        run: Callable[[], Tensor],
        reason: DenseReason,
        position: Position | None = None,
        q: Tensor | None = None,
        keys: int | None = None,
    ) -> Tensor:
        """Run the host's own attention and count it under `reason`.

        Args:
            run: computes the call the way the host would without us.
            reason: why.
            position: where in the run; None for calls that are not video self-attention.
            q: (B, H, L, D) of a video self-attention call, for the executed density.
            keys: how many keys the queries meet, None for as many as queries.
        """
        pairs = 0.0
        if q is not None and position is not None:
            pairs = float(q.shape[0] * q.shape[1]) * float(q.shape[2]) * float(q.shape[2] if keys is None else keys)
        if q is None:
            out = run()
            self.telling.report.add(Call(position, None, reason, pairs, lambda: 0.0))
            return out
        stop = self._stopwatch(q.device)
        out = run()
        self.telling.report.add(Call(position, None, reason, pairs, stop()))
        return out

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        grid: TokenGrid,
        position: Position,
        dense: Callable[[], Tensor],
        extra_before: int = 0,
        extra_after: int = 0,
        key_bias: Tensor | None = None,
        from_core: Callable[[Tensor], Tensor] = lambda out: out,
        refused: DenseReason | None = None,
    ) -> Tensor:
        """Serve one video self-attention call, sparse where the plan allows it.

        Args:
            q, k, v: (B, H, L, D) as `draft_attention` takes them.
            grid, extra_before, extra_after: what the L tokens are.
            position: where in the run.
            dense: the host's own attention for this call, in the host's output form.
            key_bias: see `draft_attention`.
            from_core: turns (B, H, L, D) into the host's output form.
            refused: why the host wants it dense; None if it does not.

        Returns:
            The output in the host's form. Never raises on account of the sparse path.

        Raises:
            RankLostError: if another rank of this run is gone.
        """
        if refused is None:
            self._make_ready(q, grid, key_bias is not None)
        layout = partial(self.settings.layout, grid, extra_before, extra_after)
        done, errors = None, self.failures.count
        try:
            policy = refused or self._policy(q, k, v, layout, position, key_bias)
            if isinstance(policy, DenseReason):
                reason: DenseReason | None = policy
            else:
                done = self._attempt(q, k, v, layout, policy, position, key_bias, from_core)
                reason = done if isinstance(done, DenseReason) else None
            reason = agreed(self.ranks, reason)
        except OtherRankFailed as failed:
            reason = failed.reason
        if reason is DenseReason.ERROR and self.failures.count == errors and self.ranks is not None:
            self.failures.count_error(Phrase("note_other_rank", "an error on another rank"))
        if reason is not None or done is None or isinstance(done, DenseReason):
            # Out here, neither a traceback nor a result that another rank made useless keeps the call's tensors alive.
            done = None
            if reason is DenseReason.OUT_OF_MEMORY:
                free(q.device)
            return self.dense(dense, reason or DenseReason.ERROR, position, q)
        self.telling.report.add(done.call)
        if self.telling.events.wanted(CallDone):
            self.telling.emit(CallDone(position, done.result))
        return done.out

    def _policy(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Callable[[], Layout],
        position: Position,
        key_bias: Tensor | None,
    ) -> Policy | DenseReason:
        """What a call is asked to do, or why it is to be dense."""
        settings, planned = self.settings, layout()
        few = planned.grid.tokens < settings.min_tokens
        if not self.failures.stood_aside:
            self._measured.meet(position, q, planned.grid, planned.extra_before + planned.extra_after)
        try:
            policy = self.plan.at(position, q.shape[1])
        except WrongHeadsError as error:
            policy = DenseReason.HEADS
            self.telling.tell(_runs_dense(error))
        if isinstance(policy, DenseReason):
            self._measured.dense(q, k, v, planned, position, key_bias)
            self.votes.observe(q, k, v, planned, position, key_bias)
            return policy
        if few:
            return DenseReason.FEW_TOKENS
        if q.shape[2] != planned.tokens:
            return DenseReason.TOKENS
        if self.failures.stood_aside:
            return DenseReason.STOOD_ASIDE
        remark = self._sparse.remark(planned.grid)
        if remark is not None:
            self.telling.note(remark)
        return policy

    def _attempt(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Callable[[], Layout],
        policy: Policy,
        position: Position,
        key_bias: Tensor | None,
        from_core: Callable[[Tensor], Tensor],
    ) -> _Done | DenseReason:
        """The call served sparse, or why it cannot be."""
        stop = self._stopwatch(q.device)
        try:
            result = self._sparse.serve(q, k, v, layout(), policy, position, key_bias)
            if result is None:
                return DenseReason.NON_FINITE
            out, density, tail_work = from_core(result.out), result.density(), result.tail_work()
            codes = result.codes()
        except (OtherRankFailed, RankLostError):
            raise
        except OUT_OF_MEMORY:
            self.telling.tell(
                Phrase(
                    "note_memory",
                    "DraftAttention ran out of memory in a sparse call and ran it dense: lower the resolution",
                )
            )
            return DenseReason.OUT_OF_MEMORY
        except (NoBackendError, WrongHeadsError) as error:
            self.telling.tell(_runs_dense(error))
            return DenseReason.BACKEND if isinstance(error, NoBackendError) else DenseReason.HEADS
        except Exception as error:
            self.failures.raised(error)
            return DenseReason.ERROR
        pairs = float(q.shape[0] * q.shape[1]) * float(q.shape[2]) ** 2
        return _Done(out, Call(position, density, None, pairs, stop(), tail_work, codes), result)

    def _stopwatch(self, device: torch.device) -> Callable[[], Callable[[], float]]:
        if times_launches_only(device):
            self.telling.note(
                Phrase(
                    "note_launches",
                    "times are those of launching work: torch has no timer events on {device}",
                    device=device.type,
                )
            )
        return stopwatch(device)


def _runs_dense(error: Exception) -> Text:
    return Phrase("note_runs_dense", "DraftAttention runs dense: {why}", why=said(error))
