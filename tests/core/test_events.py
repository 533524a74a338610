"""The channel of events: typed, ended by the one who began it, and harmless to the run."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from typing import Any

import torch

from draftattention.draftattn_core.run.evaluation import Answer, Evaluation, Outcome
from draftattention.draftattn_core.run.events import (
    EvaluationDone,
    Event,
    Events,
    Note,
    RunDone,
    RunStarted,
    StepDone,
    Waiting,
)
from draftattention.draftattn_core.run.report import DenseReason, Position
from draftattention.draftattn_core.run.run import Run
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.settings import Settings
from tests.core.evaluations import evaluation_at

KINDS = (RunStarted, EvaluationDone, StepDone, RunDone, Waiting, Note)


def test_a_listener_hears_its_kind_until_it_ends_the_subscription() -> None:
    events, heard = Events(), []
    assert not events.wanted(Note)
    end = events.subscribe(Note, heard.append)
    other = events.subscribe(Note, heard.append)
    events.emit(Note("one"))
    events.emit(Waiting("not asked for"))
    end()
    end()
    events.emit(Note("two"))
    assert heard == [Note("one"), Note("one"), Note("two")] and events.wanted(Note)
    other()
    assert not events.wanted(Note)


def test_a_listener_that_fails_is_dropped_and_the_others_are_told() -> None:
    events, heard = Events(), []

    def fail(event: Note) -> None:
        raise OSError("connection lost")

    events.subscribe(Note, fail)
    events.subscribe(Note, heard.append)
    assert "connection lost" in events.emit(Note("one"))[0]
    assert events.emit(Note("two")) == [] and heard == [Note("one"), Note("two")]


def test_a_listener_may_end_subscriptions_while_it_is_told() -> None:
    events, heard = Events(), []
    ends: list[Any] = []

    def once(event: Note) -> None:
        heard.append(event.message)
        ends[0]()

    ends.append(events.subscribe(Note, once))
    events.emit(Note("one"))
    events.emit(Note("two"))
    assert heard == ["one"]


def test_threads_share_a_channel() -> None:
    events, heard = Events(), []

    def work() -> None:
        for _ in range(200):
            end = events.subscribe(Note, heard.append)
            events.emit(Note("one"))
            end()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) >= 800 and not events.wanted(Note)


class Alternating:
    """A step cache that reuses zeros at every second step."""

    def answer(self, x: torch.Tensor, evaluation: Evaluation) -> Answer | None:
        return Answer(torch.zeros_like(x), Outcome.REUSED) if evaluation.sampler_step % 2 else None

    def store(self, x: torch.Tensor, prediction: torch.Tensor, evaluation: Evaluation) -> None:
        pass

    def clear(self) -> None:
        pass


def story() -> list[Event]:
    """Everything a run of three steps says, two evaluations each, a dense call in each that is computed."""
    run, heard = Run(Settings(schedule=constant(0.3, warmup=0.5)), step_cache=Alternating()), []
    for kind in KINDS:
        run.events.subscribe(kind, heard.append)
    run.start(steps=3)
    for step in range(3):
        for _ in range(2):

            def model(x: torch.Tensor, step: int = step) -> torch.Tensor:
                return run.calls.dense(lambda: x, DenseReason.SCHEDULE, Position(step, step / 3, 0, 1), x[None])

            run.evaluate(model, torch.zeros(1, 2, 3), evaluation_at(step, steps=3))
    run.finish()
    return heard


def test_a_run_tells_its_steps_and_counts() -> None:
    heard = story()
    assert [type(event).__name__ for event in heard] == [
        "RunStarted",
        *["EvaluationDone", "EvaluationDone", "StepDone"] * 3,
        "RunDone",
    ]
    started, first, last = heard[0], heard[3], heard[-1]
    assert started == RunStarted(3, 0.0, dense_start=True)
    assert isinstance(first, StepDone) and isinstance(last, RunDone)
    assert (first.step, first.steps, first.sparse, first.calls) == (0, 3, 0, 2)
    assert first.dense == {"schedule": 2} and first.evaluations == {"computed": 2}
    outcomes = [event.outcome for event in heard if isinstance(event, EvaluationDone)]
    assert outcomes == ["computed"] * 2 + ["reused"] * 2 + ["computed"] * 2
    layers = [event.layers for event in heard if isinstance(event, EvaluationDone)]
    assert layers == [("schedule",)] * 2 + [()] * 2 + [("schedule",)] * 2, "each of its own calls alone"
    assert last.evaluations == {"computed": 4, "reused": 2} and last.cancelled is None and last.calls == 4
    assert first.seconds <= last.seconds
    steps = [event for event in heard if isinstance(event, StepDone)]
    assert [event.dense_next for event in steps] == [True, False, False], "progress 1/3, 2/3, and none after the last"


def test_what_is_told_can_be_sent_to_a_browser() -> None:
    for event in story():
        json.dumps(asdict(event), allow_nan=False)
