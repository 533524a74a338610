"""The step cache of one run: which evaluations are skipped, and what stands in for them.

An *evaluation* is one visit of the sampler to one noise level, however many calls of the model it takes: conditions
stacked in a batch are one call, split ones are several. A *stream* is what has a history of its own: one expert on one
context window. Every evaluation of a stream is decided once, at its first call, from the state of the branch that
decides: the condition itself, or the first branch where the host names none. The others obey, each with a prediction
of its own; one that has nothing to predict from is computed, and so is one that the last evaluation left out.
Branches may be asked for by several threads at once, each on a device of its own: whoever comes first decides from the
state of the deciding branch, wherever that lies, so nobody waits for another.

EasyCache's code for Wan 2.2 lets one state run on from the high-noise expert into the low-noise one, whose first
evaluations are then answered with the other's output. Here a new expert begins without history.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from ...phrase import Phrase, Text
from ..evaluation import Answer, Evaluation, Outcome
from ..prediction import Prediction
from ..ranks.lost import RankLostError
from .easycache import EasyCacheState
from .flow import flow_latent, flow_velocity, joined, kind_of, prediction_of, split
from .forecast import ForecastState
from .latents import Parts, error_norms
from .log import Decision, OpenDecision, Reading, Reason
from .rules import estimate, quantity_of, ruled_out
from .settings import StepCacheSettings
from .stream import BranchState, Form, State, Stream
from .together import Together
from .visits import Visits, level_of

log = logging.getLogger(__name__)

_Found = TypeVar("_Found")

MAX_ERRORS = 3


class RunStepCache:
    """Step cache of one sampling run (see `StepCache`). Thread-safe. Raises nothing: what fails here is computed.

    Holds copies: three latents of the branch that decides by EasyCache, two of every other. Waits for its device for
    one number per evaluation at most.

    Attributes:
        settings: when evaluations are skipped.
        together: the other ranks of the run, to decide as one with; None if there are none.
    """

    def __init__(self, settings: StepCacheSettings, together: Together | None = None) -> None:
        self.settings = settings
        self.together = together
        self._visits = Visits()
        self._first_level: float | None = None
        self._first_step: int | None = None
        self._errors = 0
        self._first_error = ""
        self._lock = threading.RLock()

    def answer(self, x: Tensor, evaluation: Evaluation) -> Answer | None:
        """What stands in for a call of the model; None to have it computed.

        Args:
            x: (B, C, ...) bare latent.
            evaluation: what is asked for.
        """
        with self._lock:
            here = self._visits.at_its_level(evaluation)
            return self._safely(lambda: self._together(self._answer(x, here), here), here)

    def store(self, x: Tensor, prediction: Tensor, evaluation: Evaluation) -> Tensor | None:
        """Take in a call that was computed.

        Args:
            x: as given to `answer`.
            prediction: the model's own, of the shape of x.
            evaluation: as given to `answer`.

        Returns:
            What the sampler is to be given instead, of the shape and dtype of the prediction (see `corrector`); None if
            that is the prediction.
        """
        with self._lock:
            here = self._visits.at_its_level(evaluation)
            return self._safely(lambda: self._store(x, prediction, here), here)

    def withdraw(self, evaluation: Evaluation) -> None:
        """What `answer` gave could not be used: the evaluation is computed after all."""
        with self._lock:
            self._visits.withdraw(self._visits.at_its_level(evaluation), Reason.ERROR)

    def leave(self, evaluation: Evaluation, reason: Reason) -> None:
        """Take note of a call that is computed, for this reason, without being asked for."""
        with self._lock:
            here = self._visits.at_its_level(evaluation)
            stream = self._visits.enter(here)
            self._visits.serve(stream, here)
            decision = self._visits.open(stream, here, level_of(here))
            decision.compute(reason)
            decision.branches_computed += len(here.branches)

    def clear(self) -> None:
        """Free the latents. What was decided stays known."""
        with self._lock:
            self._visits.streams.clear()

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What was decided so far, in order. Waits for errors that are still on their device."""
        with self._lock:
            return tuple(decision.closed() for decision in self._visits.log)

    @property
    def computed(self) -> int:
        """Evaluations computed; those of several windows count one by one, as in `decisions`."""
        return self._count(Outcome.COMPUTED)

    @property
    def reused(self) -> int:
        return self._count(Outcome.REUSED)

    @property
    def forecast(self) -> int:
        return self._count(Outcome.FORECAST)

    @property
    def errors(self) -> int:
        """How often something failed in here. After `MAX_ERRORS` the rest of the run is computed."""
        return self._errors

    @property
    def stood_aside(self) -> Text | None:
        """That the rest of the run was computed after errors, and what the first of them was; None if it was not."""
        if self._errors < MAX_ERRORS:
            return None
        return Phrase(
            "note_cache_stands_aside",
            "no more steps were skipped in this run after {count} errors, the first of them: {error}",
            count=MAX_ERRORS,
            error=self._first_error,
        )

    @property
    def held_bytes(self) -> int:
        """Memory of the latents held."""
        with self._lock:
            states = [branch.state for stream in self._visits.streams.values() for branch in stream.branches.values()]
            return sum({t.data_ptr(): t.nbytes for state in states for t in state.tensors()}.values())

    def _count(self, outcome: Outcome) -> int:
        with self._lock:
            return sum(decision.outcome is outcome for decision in self._visits.log)

    def _together(self, answer: Answer | None, evaluation: Evaluation) -> Answer | None:
        """The answer, unless another rank has none."""
        if self.together is None or self.together.all_skip(answer is not None) or answer is None:
            return answer
        self._visits.withdraw(evaluation, Reason.RANK)
        return None

    def _safely(self, act: Callable[[], _Found | None], evaluation: Evaluation) -> _Found | None:
        try:
            return act()
        except RankLostError:
            raise
        except Exception as error:
            self._errors += 1
            self._first_error = self._first_error or f"{type(error).__name__}: {error}"
            if self.together is not None:
                self.together.failed(error)
            log.warning(
                "step cache: an evaluation is computed after %s: %s", type(error).__name__, error, exc_info=True
            )
            # A state that failed half-way is none to go on from.
            stream = self._visits.streams.setdefault((evaluation.expert, evaluation.window), Stream())
            stream.branches.clear()
            stream.in_a_row = 0
            self._visits.open(stream, evaluation, level_of(evaluation)).compute(Reason.ERROR)
            return None

    def _answer(self, x: Tensor, evaluation: Evaluation) -> Answer | None:
        if self.settings.rule == "off":
            return None
        stream, kind = self._visits.enter(evaluation), kind_of(evaluation)
        if kind is None or self._errors >= MAX_ERRORS:
            reason = Reason.STOOD_ASIDE if self._errors >= MAX_ERRORS else Reason.PREDICTION
            self._visits.open(stream, evaluation, level_of(evaluation)).compute(reason)
            return None
        level = kind.level(evaluation.level)
        latents = split(flow_latent(x, evaluation, kind), evaluation)
        decision = self._visits.current(stream) or self._decide(stream, latents, evaluation, kind, level)
        if not decision.skips:
            return None
        predicted = self._predict(stream, latents, evaluation, kind, level)
        if predicted is None:
            if any(branch.key == stream.decider for branch in evaluation.branches):
                stream.compute_after_all(Reason.BRANCH)
            return None
        velocity = joined([parts for parts, _ in predicted], evaluation)
        prediction = prediction_of(x, velocity, evaluation, kind).to(predicted[0][1])
        decision.branches_skipped += len(predicted)
        self._visits.serve(stream, evaluation)
        return Answer(prediction, decision.outcome)

    def _store(self, x: Tensor, prediction: Tensor, evaluation: Evaluation) -> Tensor | None:
        if self.settings.rule == "off":
            return None
        stream, kind = self._visits.enter(evaluation), kind_of(evaluation)
        self._visits.open(stream, evaluation, level_of(evaluation)).branches_computed += len(evaluation.branches)
        self._visits.serve(stream, evaluation)
        corrected = None
        if kind is not None and self._errors < MAX_ERRORS:
            corrected = self._learn(stream, x, prediction, evaluation, kind)
        if self.together is not None:
            # What one rank could not keep, none keeps.
            self.together.all_skip(False)
        return corrected

    def _learn(
        self, stream: Stream, x: Tensor, prediction: Tensor, evaluation: Evaluation, kind: Prediction
    ) -> Tensor | None:
        """Give every branch of a computed call its part, and measure the prediction that the call made needless.

        Returns:
            The prediction that makes good what forecasts before it missed; None if it is the one given.
        """
        if prediction.shape != x.shape:
            raise ValueError(f"the prediction is {tuple(prediction.shape)}, its latent {tuple(x.shape)}")
        level = kind.level(evaluation.level)
        decision = self._visits.open(stream, evaluation, level)
        latents = split(flow_latent(x, evaluation, kind), evaluation)
        velocities = split(flow_velocity(x, prediction, evaluation, kind), evaluation)
        corrected = False
        given = list(velocities)
        for at, (branch, y, v) in enumerate(zip(evaluation.branches, latents, velocities, strict=True)):
            kept = self._kept(stream, branch.key, Form.of(y, kind))
            if kept is None:
                kept = stream.branches[branch.key] = BranchState(
                    Form.of(y, kind), prediction.dtype, self._new_state(evaluation)
                )
            decides, state = branch.key == stream.decider, kept.state
            predicted = _predicted(state, y, level) if decides else None
            if predicted is not None:
                decision.error = Reading(error_norms(predicted, v), self.together)
                if isinstance(state, ForecastState):
                    state.measured(decision.error, level)
            if isinstance(state, ForecastState):
                moved = self._corrected(state, stream, y, v, level, evaluation, kind)
                if moved is not None:
                    given[at], corrected = moved, True
                state.store(y, v, level)
            else:
                state.store(y, v, decides)
        if not corrected:
            return None
        decision.corrected = True
        return prediction_of(x, joined(given, evaluation), evaluation, kind).to(prediction.dtype)

    def _corrected(
        self,
        state: ForecastState,
        stream: Stream,
        x: Parts,
        v: Parts,
        level: float,
        evaluation: Evaluation,
        kind: Prediction,
    ) -> Parts | None:
        if self.settings.rule != "spread" or not self.settings.correct:
            return None
        if stream.skipped == []:
            return None
        if evaluation.next_level is None or stream.skipped is None:
            decision = self._visits.open(stream, evaluation, level)
            decision.uncorrected = evaluation.uncorrected
            return None
        return state.corrected(x, v, level, kind.level(evaluation.next_level), stream.skipped)

    def _decide(
        self, stream: Stream, latents: list[Parts], evaluation: Evaluation, kind: Prediction, level: float
    ) -> OpenDecision:
        before, served = stream.decision, stream.served
        if served:
            able = [key for key, conditional in served.items() if conditional] or list(served)
            # Threads bring several conditions in any order: the one that decides goes on deciding.
            stream.decider = stream.decider if stream.decider in able else able[0]
            stream.branches = {key: branch for key, branch in stream.branches.items() if key in served}
        if self._first_level is None or self._first_step is None:
            self._first_level, self._first_step = level, evaluation.sampler_step
        stream.visit(level, self._first_level, evaluation.asked_once)
        if before is None or not before.skips:
            stream.skipped = []
        rose = before is not None and level > before.level
        if rose:
            stream.branches.clear()
        decision = self._visits.open(stream, evaluation, level)
        decider, x, reason = self._decider(stream, latents, evaluation, kind)
        step = evaluation.sampler_step - self._first_step
        reason = ruled_out(self.settings, stream, evaluation, self._visits.index, step) or (
            Reason.LEVEL_UP if rose else reason
        )
        if decider is not None:
            decision.estimate, reason = estimate(self.settings, evaluation, decider, x, level, reason)
        if reason is None and self.settings.rule == "spread":
            reason = Reason.PLANNED
            decision.outcome = Outcome.FORECAST
            stream.add_skipped(level, None if evaluation.next_level is None else kind.level(evaluation.next_level))
        elif reason is None:
            assert decision.estimate is not None and decider is not None
            reason = Reason.BELOW if decision.estimate < self.settings.threshold else Reason.ABOVE
        if reason is Reason.BELOW:
            decision.outcome = Outcome.FORECAST if self.settings.rule == "forecast" else Outcome.REUSED
            if isinstance(decider, ForecastState) and decision.estimate is not None:
                decider.skipped(decision.estimate)
        decision.reason = reason
        stream.in_a_row = stream.in_a_row + 1 if decision.skips else 0
        return decision

    def _decider(
        self, stream: Stream, latents: list[Parts], evaluation: Evaluation, kind: Prediction
    ) -> tuple[State | None, Parts, Reason | None]:
        """State of the branch that decides, the latent it sees (all branches see one), or why it cannot decide."""
        keys = [branch.key for branch in evaluation.branches]
        x = latents[keys.index(stream.decider)] if stream.decider in keys else latents[0]
        branch = stream.branches.get(stream.decider)
        if branch is None:
            return None, x, Reason.HISTORY
        form = Form.of(x, kind)
        if stream.decider not in keys:
            # Conditions may be split over devices.
            form = replace(form, devices=branch.form.devices)
        same = branch.form == form
        return (branch.state, x, None) if same else (None, x, Reason.LATENT)

    def _predict(
        self, stream: Stream, latents: list[Parts], evaluation: Evaluation, kind: Prediction, level: float
    ) -> list[tuple[Parts, torch.dtype]] | None:
        """Velocity of every branch of a call and the dtype it is wanted in; None if one of them has no history."""
        found = []
        for branch, x in zip(evaluation.branches, latents, strict=True):
            kept = self._kept(stream, branch.key, Form.of(x, kind))
            predicted = None if kept is None else _predicted(kept.state, x, level)
            if kept is None or predicted is None:
                return None
            found.append((predicted, kept.dtype))
        return found

    def _kept(self, stream: Stream, key: Hashable, form: Form) -> BranchState | None:
        """What is kept of a branch; dropped if its latent has another form now."""
        branch = stream.branches.get(key)
        if branch is not None and branch.form != form:
            del stream.branches[key]
            return None
        return branch

    def _new_state(self, evaluation: Evaluation) -> State:
        settings = self.settings
        if settings.rule in ("forecast", "spread"):
            return ForecastState(quantity_of(settings, evaluation), settings.offload)
        return EasyCacheState(settings.offload, self.together)


def _predicted(state: State, x: Parts, level: float) -> Parts | None:
    return state.predict(x, level) if isinstance(state, ForecastState) else state.predict(x)
