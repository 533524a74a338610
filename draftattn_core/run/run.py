"""A run: the one owner of everything that belongs to one sampling run of one model.

A host adapter only translates: which call is the video self-attention, its layout, its position in the run, and what
dense means there; and which evaluation of the model is asked for. Deciding, choosing tails, counting, and standing
aside when something fails happens here, so every host behaves alike. Nothing raised in the sparse path leaves it: the
call goes dense and is counted.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
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
from ..method.rules import rule_of
from ..phrase import Phrase, Text, said
from .calibatt_recorder import CalibAttRecorder
from .calibration import Calibration
from .evaluation import Answer, Evaluation, Outcome, StepCache
from .events import CallDone, EvaluationDone, Event, Events, Note, RunDone, RunStarted, StepDone, Waiting
from .fingerprint import ModelName
from .layer_row import layer_row
from .measured_calls import MeasuredCalls
from .plan import Plan
from .profile import Profile
from .ranks.lost import RankLostError
from .ranks.merge import merged_report
from .ranks.ranks import OtherRankFailed, Ranks
from .ranks.together import CachesTogether, agreed, most_errors, one_deal
from .ready import ReadyBackends, free
from .report import Call, DenseReason, Position, RunReport
from .settings import Settings
from .sparse_calls import SparseCalls, calibrated_masks
from .spending import Spending
from .step_cache import RunStepCache
from .steps import Steps
from .stopwatch import stopwatch, times_launches_only

log = logging.getLogger(__name__)

MAX_ERRORS = 3


@dataclass(eq=False)
class _Done:
    """A call served sparse: its output in the host's form, how it counts, and what the core made."""

    out: Tensor
    call: Call
    result: Attention


@dataclass(eq=False)
class Run:
    """One sampling run of one model, made when it begins and finished once. Thread-safe.

    Attributes:
        settings: what the user chose.
        events: what the run says while it goes; may outlive it.
        step_cache: answers evaluations without the model; None to compute them all.
        report: counts and notes of this run.
        cache: index tables of this run.
        plan: policy of every call.
        spending: budgets by measured error, and what is measured for a profile; None where neither was asked for.
        voting: what votes for CalibAtt's masks; None where nobody asked for them.
        model: what the host knows of the model.
        steps: how far the run has come.
        ranks: the other processes that hold heads of this run (`join`); None if there are none.
    """

    settings: Settings
    events: Events = field(default_factory=Events)
    step_cache: StepCache | None = None
    report: RunReport = field(default_factory=RunReport)
    cache: TableCache = field(default_factory=TableCache)
    model: ModelName = ModelName()
    plan: Plan = field(init=False)
    spending: Spending | None = field(init=False)
    voting: CalibAttRecorder | None = field(init=False)
    steps: Steps = field(default_factory=Steps)
    started: bool = False
    finished: bool = False
    ranks: Ranks | None = None
    _measured: MeasuredCalls = field(init=False)
    _ready: ReadyBackends = field(default_factory=ReadyBackends)
    _sparse: SparseCalls = field(init=False)
    _errors: int = 0
    _calls_before: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._set_up()
        self.report.skip = self.settings.skip
        record = self.settings.record_masks
        self.voting = CalibAttRecorder(self.model, self.settings.mask_block) if record else None
        if self.step_cache is None and self.settings.skip.rule != "off":
            self.step_cache = RunStepCache(self.settings.skip)

    def _set_up(self) -> None:
        """Make what serves sparse calls by the settings."""
        spends = self.settings.spends or self.settings.record
        self.spending = Spending(self.settings, self.model, self.note, self.report.budgets) if spends else None
        if self.spending is not None:
            self.spending.ranks = self.ranks
        self.plan = Plan(self.settings.policy, self.settings.schedule, self.spending)
        self._measured = MeasuredCalls(self.settings, self.spending, self.plan, self.report, self.cache, self._tell)
        masks = calibrated_masks(self.settings, self.model, self.note)
        self._sparse = SparseCalls(self.settings, self.plan, self.report, self.cache, self._measured, masks, self._tell)

    def _make_ready(self, q: Tensor, grid: TokenGrid, biased: bool) -> None:
        """Prepare the backend for calls like this one, and ask of it what it can serve from then on."""
        if self.stood_aside or grid.tokens < self.settings.min_tokens:
            return
        near = self._ready.prepare(self.settings, q, biased, self._wait, self.note)
        if near is None:
            return
        try:
            settings = self.settings.nearest(near)
            if settings != self.settings:
                # Before anything was decided or measured by the old ones.
                self.settings = settings
                self._set_up()
                self._ready.prepare(settings, q, biased, self._wait, self.note)
        except Exception as error:
            self.failed(error)

    def join(self, ranks: Ranks) -> None:
        """Be one run with those of the other ranks, from its beginning on: what is decided from measurements is decided
        from those of all heads, a call that is dense on one rank is dense on all, and the report counts for all.

        Every rank serves the same calls and evaluations in the same order, and finishes its run.
        """
        self.ranks = ranks
        if self.spending is not None:
            self.spending.ranks = ranks
        if self.voting is not None:
            # A vote is for all heads of a layer, and a rank sees some.
            self.voting = None
            self._tell(
                Phrase(
                    "note_masks_ranks",
                    "masks are recorded by one process alone: this run over several ranks records none",
                )
            )
        if isinstance(self.step_cache, RunStepCache):
            self.step_cache.together = CachesTogether(ranks)

    def leave(self) -> None:
        """Say nothing more to the other ranks: this one is about to end, or they are gone."""
        self.ranks = None
        if self.spending is not None:
            self.spending.ranks = None
        if isinstance(self.step_cache, RunStepCache):
            self.step_cache.together = None

    def begin_evaluation(self, failed: bool = False) -> bool:
        """Told at the beginning of every evaluation where there are ranks.

        Args:
            failed: whether this rank could not read it.

        Returns:
            Whether any rank could not.
        """
        if self.ranks is None:
            return failed
        errors, any_failed = most_errors(self.ranks, self._errors, failed)
        with self._lock:
            self._errors = errors
        return any_failed

    def dealt(self, position: Position, heads: int) -> tuple[int, ...] | None:
        """How the heads of a layer are dealt to the ranks for this call, the same on every rank; see `deal`.

        Args:
            position: of the call, without heads.
            heads: of the whole layer, a multiple of the number of ranks.

        Returns:
            None for as they come: where no budgets are known, or a rule has heads of its own.

        Raises:
            RankLostError: if another rank of this run is gone.
        """
        rule = rule_of(self.settings.policy.method)
        if self.ranks is None or self.spending is None or rule.order is not None or rule.attend is not None:
            return None
        order, failure = None, None
        try:
            order = self.spending.dealt(position, heads, self.ranks.size)
        except Exception as error:
            self.failed(error)
            failure = DenseReason.ERROR
        return one_deal(self.ranks, order, failure)

    def start(self, steps: int | None = None, progress: float = 0.0) -> Run:
        """Begin, and say so.

        Args:
            steps: steps of the sampler in this run, None if unknown.
            progress: where in the noise the run begins.
        """
        self.started = True
        self.report.started = time.perf_counter()
        self.steps.total = self.report.steps = steps
        self._emit(RunStarted(steps, progress, self.plan.starts_dense(progress)))
        return self

    def finish(self, cancelled: bool = False, tell: Callable[[RunReport], str] = RunReport.summary) -> RunReport:
        """Close the run: free what it holds, say how it went, return the report. Later calls return the report only.

        Args:
            cancelled: whether it ended before its last step was done.
            tell: puts the report in words.
        """
        with self._lock:
            if self.finished:
                return self.report
            self.finished = True
        self.cache.clear()
        self._sparse.clear()
        if self.step_cache is not None:
            self.step_cache.clear()
        if isinstance(self.step_cache, RunStepCache):
            self.report.decisions = self.step_cache.decisions
        if self.ranks is not None and self.started:
            self._merge()
        report = self.report
        report.finish()
        if cancelled:
            report.cancelled = self.steps.cancelled()
        if not self.started:
            return report
        self._emit_step(None if cancelled else self.steps.finish())
        text = tell(report)
        self._emit(RunDone(text, report.cancelled, self.steps.total, report.seconds, *self._counts()))
        return report

    def _merge(self) -> None:
        assert self.ranks is not None
        try:
            merged_report(self.ranks, self.report)
        except (RankLostError, OtherRankFailed) as error:
            self._tell(
                Phrase("note_own_heads", "what is reported is of this rank's heads alone: {why}", why=said(error))
            )

    def evaluate(self, model: Callable[[Tensor], Tensor], x: Tensor, evaluation: Evaluation) -> Tensor:
        """Answer one evaluation of the model: by the model, or by the step cache where that is near enough.

        Args:
            model: computes the host's output from the latent.
            x: (B, C, ...) latent.
            evaluation: what is asked for.

        Returns:
            The output in the host's form, of the shape of x.
        """
        answer, stop = self._ask(x, evaluation)
        if answer is None:
            try:
                out = model(x)
            except BaseException:
                self.steps.broke()
                raise
        else:
            out = evaluation.output_of(x, answer.prediction)
        return self._answered(x, out, evaluation, answer, stop)

    def _ask(self, x: Tensor, evaluation: Evaluation) -> tuple[Answer | None, Callable[[], Callable[[], float]]]:
        """What the step cache says, and what stops the time of the evaluation."""
        done = self.steps.begin(evaluation.sampler_step, evaluation.progress)
        self._emit_step(done, self.plan.starts_dense(evaluation.progress))
        self._calls_before = len(self.report.calls)
        return self._cached(x, evaluation), stopwatch(evaluation.device)

    def _answered(
        self,
        x: Tensor,
        out: Tensor,
        evaluation: Evaluation,
        answer: Answer | None,
        stop: Callable[[], Callable[[], float]],
    ) -> Tensor:
        """Count an evaluation and keep what the step cache needs of it; what it makes of the output is returned."""
        if answer is None:
            self.report.add_evaluation(evaluation.step, stop())
            out = self._keep(x, out, evaluation)
        outcome = Outcome.COMPUTED if answer is None else answer.outcome
        self.report.add_outcome(outcome.value, evaluation.step)
        if self.events.wanted(EvaluationDone):
            at = evaluation.sampler_step, self.steps.total, evaluation.progress, evaluation.level
            layers = layer_row(self.report.calls[self._calls_before :])
            self._emit(EvaluationDone(*at, outcome.value, self.report.seconds, layers))
        return out

    def _cached(self, x: Tensor, evaluation: Evaluation) -> Answer | None:
        if self.step_cache is None or not evaluation.prediction or self.stood_aside:
            return None
        try:
            return self.step_cache.answer(x, evaluation)
        except RankLostError:
            raise
        except Exception as error:
            self.failed(error)
            return None

    def _keep(self, x: Tensor, out: Tensor, evaluation: Evaluation) -> Tensor:
        if self.step_cache is None or not evaluation.prediction or self.stood_aside:
            return out
        try:
            other = self.step_cache.store(x, evaluation.prediction_of(x, out), evaluation)
            return out if other is None else evaluation.output_of(x, other).to(out.dtype)
        except Exception as error:
            self.failed(error)
            return out

    @property
    def stood_aside(self) -> bool:
        """Whether this run gave up being sparse after `MAX_ERRORS` errors."""
        return self._errors >= MAX_ERRORS

    def profile(self, prompt: str | None = None) -> Profile | None:
        """What this run measured of its model, alone, for `add_to_file`; None if that is nothing.

        Args:
            prompt: its text, of which a key is kept; None if unknown, which counts as no prompt.
        """
        if self.spending is None:
            return None
        return self.spending.profile(prompt, self.steps.total or self.steps.done)

    def calibration(self, prompt: str | None = None) -> Calibration | None:
        """What this run voted for CalibAtt's masks, for `add_to_calibration`; None if that is nothing.

        A run that was sparse does not vote: its masks would be made from what masks had changed.

        Args:
            prompt: its text, of which a key is kept; None if unknown, which counts as no prompt.
        """
        if self.voting is None:
            return None
        if self.report.calls_sparse:
            self.note(
                Phrase(
                    "note_sparse_no_vote",
                    "this run was sparse, so it did not vote for masks: calibrate without DraftAttention Sparse",
                )
            )
            return None
        return self.voting.calibration(prompt)

    def _vote(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, position: Position, bias: Tensor | None) -> None:
        """Measure a dense call for masks. Never raises."""
        if self.voting is None or q.shape[2] != layout.tokens:
            return
        try:
            self.voting.observe(q, k, v, layout, position, self.steps.total, bias)
        except Exception as error:
            self._tell(
                Phrase(
                    "note_no_vote",
                    "a dense call did not vote for masks: {error}",
                    error=f"{type(error).__name__}: {error}",
                )
            )

    def step_of(self, level: float) -> int:
        """Index of a noise level in this run, in order of first appearance."""
        return self.steps.index_of(level)

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
            self.report.add(Call(position, None, reason, pairs, lambda: 0.0))
            return out
        stop = self._stopwatch(q.device)
        out = run()
        self.report.add(Call(position, None, reason, pairs, stop()))
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
        done, errors = None, self._errors
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
        if reason is DenseReason.ERROR and self._errors == errors and self.ranks is not None:
            self._count_error(Phrase("note_other_rank", "an error on another rank"))
        if reason is not None or done is None or isinstance(done, DenseReason):
            # Out here, neither a traceback nor a result that another rank made useless keeps the call's tensors alive.
            done = None
            if reason is DenseReason.OUT_OF_MEMORY:
                free(q.device)
            return self.dense(dense, reason or DenseReason.ERROR, position, q)
        self.report.add(done.call)
        if self.events.wanted(CallDone):
            self._emit(CallDone(position, done.result))
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
        if not self.stood_aside:
            self._measured.meet(position, q, planned.grid, planned.extra_before + planned.extra_after)
        try:
            policy = self.plan.at(position, q.shape[1])
        except WrongHeadsError as error:
            policy = DenseReason.HEADS
            self._tell(_runs_dense(error))
        if isinstance(policy, DenseReason):
            self._measured.dense(q, k, v, planned, position, key_bias)
            self._vote(q, k, v, planned, position, key_bias)
            return policy
        if few:
            return DenseReason.FEW_TOKENS
        if q.shape[2] != planned.tokens:
            return DenseReason.TOKENS
        if self.stood_aside:
            return DenseReason.STOOD_ASIDE
        remark = self._sparse.remark(planned.grid)
        if remark is not None:
            self.note(remark)
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
            self._tell(
                Phrase(
                    "note_memory",
                    "DraftAttention ran out of memory in a sparse call and ran it dense: lower the resolution",
                )
            )
            return DenseReason.OUT_OF_MEMORY
        except (NoBackendError, WrongHeadsError) as error:
            self._tell(_runs_dense(error))
            return DenseReason.BACKEND if isinstance(error, NoBackendError) else DenseReason.HEADS
        except Exception as error:
            self.failed(error)
            return DenseReason.ERROR
        pairs = float(q.shape[0] * q.shape[1]) * float(q.shape[2]) ** 2
        return _Done(out, Call(position, density, None, pairs, stop(), tail_work, codes), result)

    def _stopwatch(self, device: torch.device) -> Callable[[], Callable[[], float]]:
        if times_launches_only(device):
            self.note(
                Phrase(
                    "note_launches",
                    "times are those of launching work: torch has no timer events on {device}",
                    device=device.type,
                )
            )
        return stopwatch(device)

    def note(self, message: Text) -> bool:
        """Keep a message for the user; False if it was there already."""
        if not self.report.note(message):
            return False
        self._emit(Note(message))
        return True

    def _tell(self, message: Text) -> None:
        if self.note(message):
            log.warning(message)

    def _wait(self, message: Text) -> None:
        log.info(message)
        self._emit(Waiting(message))

    def _emit_step(self, done: tuple[int, float] | None, dense_next: bool = False) -> None:
        if done is not None and self.events.wanted(StepDone):
            step, progress = done
            counts = self._counts()
            self._emit(StepDone(step, self.steps.total, progress, self.report.seconds, *counts, dense_next))

    def _counts(self) -> tuple[int, int, dict[str, int], dict[str, int]]:
        calls = sum(call.position is not None for call in self.report.calls)
        return self.report.calls_sparse, calls, self.report.calls_dense(), dict(self.report.outcomes)

    def _emit(self, event: Event) -> None:
        for failure in self.events.emit(event):
            self.note(failure)

    def failed(self, error: Exception) -> None:
        """Count an error of ours, from an except block: the first is logged with its traceback, after `MAX_ERRORS` the
        run stands aside. Hosts call it for errors of their own translation."""
        if not self._errors:
            log.error("DraftAttention: a sparse call failed and ran dense\n%s", traceback.format_exc())
        self._count_error(Phrase("note_error", "error: {error}", error=f"{type(error).__name__}: {error}"))

    def _count_error(self, message: Text) -> None:
        with self._lock:
            self._errors += 1
            last = self._errors == MAX_ERRORS
        self._tell(message)
        if last:
            self._tell(
                Phrase(
                    "note_stands_aside",
                    "DraftAttention stands aside for the rest of this run after {count} errors",
                    count=MAX_ERRORS,
                )
            )


def _runs_dense(error: Exception) -> Text:
    return Phrase("note_runs_dense", "DraftAttention runs dense: {why}", why=said(error))
