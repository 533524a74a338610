"""A run: the one owner of everything that belongs to one sampling run of one model.

A host adapter only translates: which call is the video self-attention, its layout, its position in the run, and what
dense means there; and which evaluation of the model is asked for. Deciding, choosing tails, counting, and standing
aside when something fails happens here, so every host behaves alike. Nothing raised in the sparse path leaves it: the
call goes dense and is counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..geometry.layout import TableCache
from ..method.rules import rule_of
from ..phrase import Phrase, Text, said
from .calibatt_recorder import CalibAttRecorder
from .calibration import Calibration
from .calls import Calls
from .evaluation import Answer, Evaluation, Outcome, StepCache
from .events import EvaluationDone, Events, RunDone, RunStarted
from .failures import Failures
from .fingerprint import ModelName
from .layer_row import layer_row
from .profile import Profile
from .ranks.lost import RankLostError
from .ranks.merge import merged_report
from .ranks.ranks import OtherRankFailed, Ranks
from .ranks.together import CachesTogether, most_errors, one_deal
from .report import DenseReason, Position, RunReport
from .settings import Settings
from .step_cache import Reason, RunStepCache, StepCacheSettings
from .steps import Steps
from .stopwatch import stopwatch
from .telling import Telling
from .votes import Votes


@dataclass(eq=False)
class Run:
    """One sampling run of one model, made when it begins and finished once. Thread-safe.

    Attributes:
        settings: what the user chose.
        events: what the run says while it goes; may outlive it.
        step_cache: answers evaluations without the model; None to compute them all.
        report: counts and notes of this run.
        model: what the host knows of the model.
        steps: how far the run has come.
        ranks: the other processes that hold heads of this run (`join`); None if there are none.
        telling, failures: what the run says, and its own errors.
        votes: for CalibAtt's masks.
        calls: serves its attention.
    """

    settings: Settings
    events: Events = field(default_factory=Events)
    step_cache: StepCache | None = None
    report: RunReport = field(default_factory=RunReport)
    model: ModelName = ModelName()
    steps: Steps = field(default_factory=Steps)
    started: bool = False
    finished: bool = False
    ranks: Ranks | None = None
    telling: Telling = field(init=False)
    failures: Failures = field(init=False)
    votes: Votes = field(init=False)
    calls: Calls = field(init=False)
    _calls_before: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.report.skip = self.settings.skip
        self.telling = Telling(self.report, self.events, self.steps)
        self.failures = Failures(self.telling)
        recorder = CalibAttRecorder(self.model, self.settings.mask_block) if self.settings.record_masks else None
        self.votes = Votes(self.telling, recorder)
        self.calls = Calls(self.settings, self.model, TableCache(), self.telling, self.failures, self.votes)
        if self.step_cache is None and self.settings.skip.rule != "off":
            self.step_cache = RunStepCache(self.settings.skip)

    def skip_nothing(self, why: Text) -> None:
        """Compute every evaluation after all, from the beginning on: the step cache stands aside, as `why` tells."""
        self.step_cache = None
        self.report.skip = StepCacheSettings()
        self.telling.tell(why)

    def join(self, ranks: Ranks) -> None:
        """Be one run with those of the other ranks, from its beginning on: what is decided from measurements is decided
        from those of all heads, a call that is dense on one rank is dense on all, and the report counts for all.

        Every rank serves the same calls and evaluations in the same order, and finishes its run.
        """
        self.ranks = ranks
        self.calls.join(ranks)
        self.votes.refuse_ranks()
        if isinstance(self.step_cache, RunStepCache):
            self.step_cache.together = CachesTogether(ranks)

    def leave(self) -> None:
        """Say nothing more to the other ranks: this one is about to end, or they are gone."""
        self.ranks = None
        self.calls.join(None)
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
        errors, any_failed = most_errors(self.ranks, self.failures.count, failed)
        self.failures.agree(errors)
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
        rule, spending = rule_of(self.calls.settings.policy.method), self.calls.spending
        if self.ranks is None or spending is None or rule.order is not None or rule.attend is not None:
            return None
        order, failure = None, None
        try:
            order = spending.dealt(position, heads, self.ranks.size)
        except Exception as error:
            self.failures.raised(error)
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
        self.telling.emit(RunStarted(steps, progress, self.calls.plan.starts_dense(progress)))
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
        self.calls.clear()
        if self.step_cache is not None:
            self.step_cache.clear()
        if isinstance(self.step_cache, RunStepCache):
            self.report.decisions = self.step_cache.decisions
            if self.step_cache.stood_aside is not None:
                self.telling.note(self.step_cache.stood_aside)
        if self.ranks is not None and self.started:
            self._merge()
        report = self.report
        report.finish()
        if cancelled:
            report.cancelled = self.steps.cancelled()
        if not self.started:
            return report
        self.telling.step_done(None if cancelled else self.steps.finish())
        text = tell(report)
        self.telling.emit(RunDone(text, report.cancelled, self.steps.total, report.seconds, *self.telling.counts()))
        return report

    def _merge(self) -> None:
        assert self.ranks is not None
        try:
            merged_report(self.ranks, self.report)
        except (RankLostError, OtherRankFailed) as error:
            self.telling.tell(
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
        answer, out, stop = self._ask(x, evaluation)
        if out is None:
            try:
                out = model(x)
            except BaseException:
                self.steps.broke()
                raise
        return self._answered(x, out, evaluation, answer, stop)

    def count_computed(self, step: int) -> None:
        """Count an evaluation that was computed outside of `evaluate`, since nobody could say what was asked for.

        Args:
            step: index of its noise level in the run, as far as that is known.
        """
        self.report.add_outcome(Outcome.COMPUTED.value, step)

    def _ask(
        self, x: Tensor, evaluation: Evaluation
    ) -> tuple[Answer | None, Tensor | None, Callable[[], Callable[[], float]]]:
        """What the step cache says, as such and in the host's form, and what stops the time of the evaluation."""
        done = self.steps.begin(evaluation.sampler_step, evaluation.progress)
        self.telling.step_done(done, self.calls.plan.starts_dense(evaluation.progress))
        self._calls_before = len(self.report.calls)
        answer, out = self._cached(x, evaluation)
        return answer, out, stopwatch(evaluation.device)

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
            self.telling.emit(EvaluationDone(*at, outcome.value, self.report.seconds, layers))
        return out

    def _cached(self, x: Tensor, evaluation: Evaluation) -> tuple[Answer | None, Tensor | None]:
        cache, answer = self.step_cache, None
        if cache is None:
            return None, None
        try:
            if self.failures.stood_aside or not evaluation.prediction:
                if isinstance(cache, RunStepCache):
                    reason = Reason.STOOD_ASIDE if self.failures.stood_aside else Reason.PREDICTION
                    cache.leave(evaluation, reason)
                return None, None
            answer = cache.answer(x, evaluation)
            return answer, None if answer is None else evaluation.output_of(x, answer.prediction)
        except RankLostError:
            raise
        except Exception as error:
            self.failures.raised(error)
            if answer is not None and isinstance(cache, RunStepCache):
                cache.withdraw(evaluation)
            return None, None

    def _keep(self, x: Tensor, out: Tensor, evaluation: Evaluation) -> Tensor:
        if self.step_cache is None or not evaluation.prediction or self.failures.stood_aside:
            return out
        try:
            other = self.step_cache.store(x, evaluation.prediction_of(x, out), evaluation)
            return out if other is None else evaluation.output_of(x, other).to(out.dtype)
        except Exception as error:
            self.failures.raised(error)
            return out

    def profile(self, prompt: str | None = None) -> Profile | None:
        """What this run measured of its model, alone, for `add_to_file`; None if that is nothing.

        Args:
            prompt: its text, of which a key is kept; None if unknown, which counts as no prompt.
        """
        if self.calls.spending is None:
            return None
        return self.calls.spending.profile(prompt, self.steps.total or self.steps.done)

    def calibration(self, prompt: str | None = None) -> Calibration | None:
        """What this run voted for CalibAtt's masks, for `add_to_calibration`; None if that is nothing.

        A run that was sparse does not vote: its masks would be made from what masks had changed.

        Args:
            prompt: its text, of which a key is kept; None if unknown, which counts as no prompt.
        """
        return self.votes.calibration(prompt)

    def step_of(self, level: float) -> int:
        """Index of a noise level in this run, in order of first appearance."""
        return self.steps.index_of(level)
