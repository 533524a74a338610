"""What a run does not hand on, or does not ask the step cache for, is computed, counted once, and has its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.run.evaluation import Branch, Denoised, Evaluation
from draftattention.draftattn_core.run.failures import MAX_ERRORS
from draftattention.draftattn_core.run.run import Run
from draftattention.draftattn_core.run.settings import Settings
from draftattention.draftattn_core.run.step_cache import Reason, RunStepCache, StepCacheSettings
from tests.comfyui.plain_spread import euler_put_right

from .step_cases import BOTH, FORECAST, Host, levels, noise, outcomes, run, smooth_model

STEPS = 20


class Broken(Denoised):
    """A host that cannot make its output of one prediction."""

    def denoised(self, x: Tensor, prediction: Tensor) -> Tensor:
        raise ArithmeticError("planted")


def sampled(of: Run, asked: Host, *, broken: frozenset[int] = frozenset()) -> None:
    """A run of `STEPS` through the run's `evaluate`."""
    x, schedule, model = noise(0), levels(STEPS), smooth_model(0)
    of.start(STEPS, 0.0)
    for step, (s, after) in enumerate(zip(schedule, schedule[1:])):
        evaluation = asked.evaluation(x, s, step == STEPS - 1)
        if step in broken:
            evaluation = replace(evaluation, denoised=Broken(torch.zeros(()), torch.ones(())))
        x = x + (after - s) * of.evaluate(lambda latent, s=s: model(latent, s), x, evaluation)  # type: ignore[misc]
    of.finish()


def opened(settings: StepCacheSettings) -> Run:
    return Run(Settings(skip=settings))


def host(of: Run) -> Host:
    assert isinstance(of.step_cache, RunStepCache)
    return Host(of.step_cache, steps=STEPS, schedule=levels(STEPS))


@BOTH
def test_an_answer_that_the_host_cannot_use_is_computed_and_counted_with_its_reason(
    settings: StepCacheSettings,
) -> None:
    mine = opened(settings)
    sampled(mine, host(mine), broken=frozenset({7}))
    failed = mine.report.decisions[7]
    assert (str(failed.outcome), failed.reason) == ("computed", Reason.ERROR)
    assert (failed.branches_computed, failed.branches_skipped) == (1, 0)
    assert mine.report.outcomes["computed"] == outcomes(mine.report.decisions).count("C")
    assert sum(mine.report.outcomes.values()) == len(mine.report.decisions) == STEPS


@BOTH
def test_where_the_run_stands_aside_the_log_says_so_of_every_evaluation(settings: StepCacheSettings) -> None:
    mine = opened(settings)
    asked = host(mine)
    for _ in range(MAX_ERRORS):
        mine.failures.raised(ArithmeticError("planted"))
    sampled(mine, asked)
    assert {decision.reason for decision in mine.report.decisions} == {Reason.STOOD_ASIDE}
    assert mine.report.outcomes == {"computed": STEPS} and len(mine.report.decisions) == STEPS
    assert all(decision.branches_computed == 1 for decision in mine.report.decisions)


@pytest.mark.parametrize("rule", ["easycache", "forecast", "spread"])
def test_of_a_model_whose_prediction_nobody_knows_every_evaluation_is_computed_for_that_reason(rule: str) -> None:
    mine = opened(replace(FORECAST, rule=rule))  # type: ignore[arg-type]
    sampled(mine, replace(host(mine), prediction=""))
    assert {decision.reason for decision in mine.report.decisions} == {Reason.PREDICTION}
    assert mine.report.outcomes == {"computed": STEPS} and len(mine.report.decisions) == STEPS


def test_a_planned_forecast_that_is_withdrawn_has_nothing_made_good_for_it() -> None:
    """The sampler goes on with the model's own output, as if the step had been planned."""
    settings = StepCacheSettings("spread", first=1, share=0.4, max_forecast_error=float("inf"))
    schedule, model = levels(STEPS), smooth_model(0)
    cache = RunStepCache(settings)
    asked = Host(cache, steps=STEPS, schedule=schedule)
    planned = settings.planned_steps(STEPS)
    withdrawn = max(step for step in range(STEPS) if step not in planned and step - 1 in planned)
    seen: list[Evaluation] = []

    class Withdrawing(RunStepCache):
        def answer(self, x: Tensor, evaluation: Evaluation):  # type: ignore[no-untyped-def]
            found = super().answer(x, evaluation)
            if evaluation.sampler_step == withdrawn and found is not None:
                seen.append(evaluation)
                self.withdraw(evaluation)
                return None
            return found

    asked = Host(Withdrawing(settings), steps=STEPS, schedule=schedule)
    got = run(asked, model, schedule)
    assert len(seen) == 1
    expected, other = (
        euler_put_right(lambda x, step: model(x, schedule[step]), noise(0), schedule, steps)
        for steps in (planned | {withdrawn}, planned)
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert float((other - expected).norm()) > 100 * float((got - expected).norm())


def test_a_share_of_first_steps_is_one_of_the_whole_schedule_where_two_samplers_take_it_in_turns() -> None:
    """EasyCache as published for Wan 2.2 A14B computes 7 of 50 first: 3 of 20, all in the first half."""
    settings = replace(StepCacheSettings.published("wan2.2-a14b", as_share=True), threshold=1e9)
    reasons = []
    for before, after in ((0, 10), (10, 0)):
        cache = RunStepCache(settings)
        schedule = levels(STEPS)[before : before + 11]

        class Half(Host):
            def evaluation(self, x: Tensor, s: float, is_last: bool, before=before, after=after) -> Evaluation:  # type: ignore[no-untyped-def]
                made = super().evaluation(x, s, is_last and not after)
                return replace(made, before=before, after=after)

        run(Half(cache, steps=10, schedule=schedule), smooth_model(0), schedule)
        reasons.append([decision.reason for decision in cache.decisions])
    assert reasons[0][:4] == [Reason.FIRST] * 3 + [Reason.BELOW], "2 of the half's 10 would be too few"
    assert reasons[0][-1] is Reason.BELOW, "the end of the half is not the end of the run"
    assert Reason.FIRST not in reasons[1] and reasons[1][:2] == [Reason.HISTORY] * 2
    assert reasons[1][-1] is Reason.LAST


def test_branches_of_one_call_are_withdrawn_together() -> None:
    settings = replace(FORECAST, first=2)
    cache = RunStepCache(settings)
    asked = Host(cache, keys=("cond", "uncond"), steps=STEPS, schedule=levels(STEPS))
    model = smooth_model(0)
    for step in range(3):
        x = noise(0, (2, 4, 3, 4, 6))
        evaluation = asked.evaluation(x, levels(STEPS)[step], False)
        answer = cache.answer(x, evaluation)
        if answer is not None:
            cache.withdraw(evaluation)
        cache.store(x, model(x, levels(STEPS)[step]), evaluation)
    assert outcomes(cache.decisions) == "CCC"
    assert [(one.branches_computed, one.branches_skipped) for one in cache.decisions] == [(2, 0)] * 3
    assert cache.decisions[2].reason is Reason.ERROR and isinstance(evaluation.branches[0], Branch)
