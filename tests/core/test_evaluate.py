"""`Run.evaluate`: the model's own output to the bit, or the step cache's answer; and how far a run came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.phrase import Phrase
from draftattention.draftattn_core.run.evaluation import Answer, Branch, Denoised, Evaluation, Outcome
from draftattention.draftattn_core.run.events import RunDone
from draftattention.draftattn_core.run.failures import MAX_ERRORS
from draftattention.draftattn_core.run.run import Run
from draftattention.draftattn_core.run.settings import Settings
from draftattention.draftattn_core.run.step_cache import RunStepCache, StepCacheSettings
from tests.core.evaluations import evaluation_at

X = torch.randn(2, 4, 3, 5, 7, generator=torch.Generator().manual_seed(0))
SETTINGS = Settings()


class Recorder:
    """A step cache that keeps what it is told and answers what it was given."""

    def __init__(self, answers: Callable[[Evaluation], Tensor | None] = lambda evaluation: None) -> None:
        self.answers = answers
        self.stored: list[tuple[Tensor, Tensor]] = []
        self.cleared = 0

    def answer(self, x: Tensor, evaluation: Evaluation) -> Answer | None:
        found = self.answers(evaluation)
        return None if found is None else Answer(found, Outcome.FORECAST)

    def store(self, x: Tensor, prediction: Tensor, evaluation: Evaluation) -> None:
        self.stored.append((x, prediction))

    def clear(self) -> None:
        self.cleared += 1


def never(x: Tensor) -> Tensor:
    raise AssertionError("the model was called")


def test_without_a_step_cache_the_output_is_the_models_own() -> None:
    run, made = Run(SETTINGS).start(), X.clone()
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return made

    assert run.evaluate(model, X, evaluation_at(0)) is made
    assert seen == [X] and seen[0] is X
    assert run.report.outcomes == {"computed": 1} and [step for step, _ in run.report.evaluations] == [0]


def denoised() -> Denoised:
    """Of a flow at t = 0.7 and 0.2."""
    t = torch.tensor([0.7, 0.2])[:, None, None, None, None]
    return Denoised(torch.ones_like(t), -t)


def test_the_step_cache_speaks_in_the_models_own_prediction() -> None:
    cache, made = Recorder(), torch.randn_like(X)
    run = Run(SETTINGS, step_cache=cache).start()
    evaluation = evaluation_at(3, denoised=denoised())
    assert evaluation.output == "x0" and evaluation_at(3).output == "velocity" and evaluation.latent == "flow"
    x0 = X - made * torch.tensor([0.7, 0.2]).view(2, 1, 1, 1, 1)
    assert run.evaluate(lambda x: x0, X, evaluation) is x0
    torch.testing.assert_close(cache.stored[0][1], made, rtol=1e-5, atol=1e-5)
    cache.answers = lambda evaluation: made
    torch.testing.assert_close(run.evaluate(never, X, evaluation), x0, rtol=1e-6, atol=1e-6)
    assert run.report.outcomes == {"computed": 1, "forecast": 1} and len(run.report.evaluations) == 1
    run.finish()
    run.finish()
    assert cache.cleared == 1


def test_what_is_not_known_to_be_convertible_is_always_computed() -> None:
    cache = Recorder(lambda evaluation: X)
    run = Run(SETTINGS, step_cache=cache)
    out = torch.zeros_like(X)
    assert run.evaluate(lambda x: out, X, evaluation_at(0, prediction="")) is out and not cache.stored


@pytest.mark.parametrize("fails", ["answer", "store"])
def test_a_step_cache_that_fails_has_the_evaluation_computed_and_is_left_alone_in_the_end(fails: str) -> None:
    cache = Recorder()
    tries: list[int] = []

    def fail(*_: Any) -> Any:
        tries.append(1)
        raise RuntimeError("broken on purpose")

    setattr(cache, fails, fail)
    run = Run(SETTINGS, step_cache=cache)
    for step in range(MAX_ERRORS + 2):
        out = torch.zeros(1)
        assert run.evaluate(lambda x, out=out: out, X, evaluation_at(step)) is out
    assert run.report.outcomes == {"computed": MAX_ERRORS + 2} and len(tries) <= MAX_ERRORS
    assert any("broken on purpose" in note for note in run.report.notes)


def test_an_error_of_the_step_cache_is_not_called_one_of_a_sparse_call(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(SETTINGS, step_cache=Recorder(lambda evaluation: X[..., :3]))
    run.evaluate(lambda x: x, X, evaluation_at(3, denoised=denoised()))
    assert [line.splitlines()[0] for line in caplog.messages if "Traceback" in line] == [
        "DraftAttention met an error and left its part to the model itself"
    ]


@pytest.mark.parametrize("fails", [MAX_ERRORS - 1, MAX_ERRORS])
def test_a_run_whose_step_cache_stood_aside_notes_its_first_error(fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Settings(skip=StepCacheSettings("forecast", 100.0)))
    run.start(steps=20)
    left = iter([ValueError("the first"), *[RuntimeError("another")] * (fails - 1)])

    def fail(*_: Any) -> None:
        error = next(left, None)
        if error is not None:
            raise error

    monkeypatch.setattr(RunStepCache, "_learn", fail)
    for step in range(MAX_ERRORS + 2):
        run.evaluate(lambda x: x, X, evaluation_at(step, branches=(Branch("cond", slice(0, 2)),)))
    notes = [note for note in run.finish().notes if "errors" in note]
    told = "no more steps were skipped in this run after 3 errors, the first of them: ValueError: the first"
    assert notes == ([told] if fails == MAX_ERRORS else [])
    assert not notes or isinstance(notes[0], Phrase)


def test_an_answer_that_cannot_be_put_in_the_hosts_form_has_the_evaluation_computed() -> None:
    cache, made = Recorder(lambda evaluation: X[..., :3]), torch.randn_like(X)
    run = Run(SETTINGS, step_cache=cache).start()
    assert run.evaluate(lambda x: made, X, evaluation_at(3, denoised=denoised())) is made
    assert run.report.outcomes == {"computed": 1} and run.failures.count == 1
    assert len(cache.stored) == 1 and any("error" in str(note) for note in run.report.notes)


def test_an_error_of_the_model_is_the_models() -> None:
    run = Run(SETTINGS, step_cache=Recorder()).start(steps=20)

    def fail(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.evaluate(fail, X, evaluation_at(0))
    assert run.report.outcomes == {} and run.report.notes == []


def at_steps(run: Run, steps: list[int]) -> None:
    for step in steps:
        run.evaluate(lambda x: x, X, evaluation_at(step))


def interrupted_at(run: Run, step: int) -> None:
    def interrupt(x: Tensor) -> Tensor:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run.evaluate(interrupt, X, evaluation_at(step))


def test_a_cancelled_run_says_how_far_it_came() -> None:
    def told(run: Run) -> str | None:
        said: list[RunDone] = []
        run.events.subscribe(RunDone, said.append)
        report = run.finish(cancelled=True)
        assert report.cancelled is not None and report.to_dict()["cancelled"] == report.cancelled
        assert said[0].cancelled == report.cancelled and said[0].text == report.summary()
        assert report.summary().startswith(f"DraftAttention: {report.cancelled}; ")
        return report.cancelled

    between = Run(SETTINGS).start(steps=20)
    at_steps(between, [0, 0, 1, 1, 2, 2])
    assert told(between) == "cancelled after step 3 of 20"
    within = Run(SETTINGS).start(steps=20)
    at_steps(within, [0, 1, 2])
    interrupted_at(within, 3)
    assert told(within) == "cancelled after step 3 of 20"
    early = Run(SETTINGS).start(steps=20)
    interrupted_at(early, 0)
    assert told(early) == "cancelled in step 1 of 20"
    unknown = Run(SETTINGS).start()
    at_steps(unknown, [0, 1])
    assert told(unknown) == "cancelled after step 2"


def test_a_complete_run_is_not_called_cancelled() -> None:
    run = Run(SETTINGS).start(steps=3)
    at_steps(run, [0, 1, 2])
    report = run.finish()
    assert report.cancelled is None and "cancelled" not in report.summary()
