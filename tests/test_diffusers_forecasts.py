"""Runs of diffusers with forecast steps end near those without: every model, Heun, two experts, a compiled model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.evaluation import Outcome
from draftattention.draftattn_core.run.report import RunReport
from draftattention.draftattn_core.run.step_cache import Reason, StepCacheSettings
from draftattention.draftattn_core.run.step_cache.settings import Rule
from draftattention.draftattn_core.run.step_cache.spread import planned_steps
from tests.diffusers_models import MODELS, build_smooth
from tests.diffusers_runs import DENSE, applied, calls_of, compiled_alone, guided

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def off(found: Tensor, plain: Tensor) -> float:
    """Relative, in the L2 norm."""
    assert found.shape == plain.shape and found.dtype == plain.dtype and torch.isfinite(found).all()
    return float((found - plain).norm() / plain.norm())


def computed(report: RunReport) -> list[int]:
    """Indices of the evaluations that were computed."""
    return [made.index for made in report.decisions if made.outcome is Outcome.COMPUTED]


@pytest.mark.parametrize("name", MODELS)
def test_a_run_with_forecasts_ends_nearer_the_whole_one_than_a_run_of_as_many_steps(name: str) -> None:
    model, inputs, steps = build_smooth(name), MODELS[name].inputs(2), 12
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    calls = calls_of(model)
    with torch.no_grad():
        plain = guided(model, scheduler, inputs, steps)
        rules: tuple[tuple[Rule, int], ...] = (("spread", 4), ("forecast", 0))
        for rule, corrections in rules:
            calls.clear()
            settings = replace(DENSE, skip=StepCacheSettings(rule, threshold=0.2))
            with apply_draft_attention(model, settings, scheduler=scheduler) as handle:
                found = guided(model, scheduler, inputs, steps)
            report, asked = handle.report, len(calls)
            few = guided(model, scheduler, inputs, asked // 2)
            assert report.outcomes == {"computed": asked, "forecast": 2 * steps - asked} and 0 < asked <= 14
            assert asked == 2 * len(computed(report)) and len(report.decisions) == steps
            # Both conditions of a step are computed, or neither is.
            assert {(made.branches_computed, made.branches_skipped) for made in report.decisions} == {(2, 0), (0, 2)}
            assert report.notes == [] and 0.0 < off(found, plain) < 0.7 * off(few, plain)
            assert [made.corrected for made in report.decisions].count(True) == corrections


def test_under_heun_a_plan_is_one_of_evaluations_of_which_two_share_a_level() -> None:
    """diffusers lists the timesteps of Heun's second evaluations, so that each counts as a step. Nothing is corrected:
    what Heun remembers must be the model's own."""
    model, inputs, steps = build_smooth("wan"), MODELS["wan"].inputs(1), 8
    skip = StepCacheSettings("spread", share=0.5)
    scheduler = FlowMatchHeunDiscreteScheduler(shift=5.0)
    with torch.no_grad():
        plain = guided(model, scheduler, inputs, steps)
        with apply_draft_attention(model, replace(DENSE, skip=skip), scheduler=scheduler) as handle:
            found = guided(model, scheduler, inputs, steps)
    report, listed = handle.report, 2 * steps - 1
    assert report.steps == len(report.decisions) == listed == len(scheduler.timesteps)
    assert computed(report) == sorted(planned_steps(listed, skip.share, skip.first))
    levels = [made.level for made in report.decisions]
    twice = [at for at in range(1, listed) if levels[at] == levels[at - 1]]
    assert twice == list(range(2, listed, 2))
    # Of the two at a level both, either or none may be computed.
    kinds = {(at - 1 in computed(report), at in computed(report)) for at in twice}
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}
    assert {str(made.uncorrected) for made in report.decisions} - {"None"} == {"other sampler than euler"}
    assert not any(made.corrected for made in report.decisions)
    assert 0.0 < off(found, plain) < 0.1


def in_turns(models: Sequence[Any], scheduler: Any, inputs: dict[str, Any], steps: int, boundary: float) -> Tensor:
    """The loop of Wan 2.2's pipeline: the first model down to the timestep `boundary`, then the second."""
    text, latents = inputs["encoder_hidden_states"], inputs["hidden_states"]
    other = -text
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        model = models[0] if t >= boundary else models[1]
        here = {**inputs, "hidden_states": latents, "timestep": t.expand(latents.shape[0])}
        velocity = model(**here, return_dict=False)[0]
        uncond = model(**{**here, "encoder_hidden_states": other}, return_dict=False)[0]
        latents = scheduler.step(uncond + 2.0 * (velocity - uncond), t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("rule", ["spread", "forecast", "easycache"])
def test_two_experts_on_one_scheduler_have_histories_of_their_own(rule: Rule) -> None:
    inputs, steps, boundary = MODELS["wan"].inputs(1), 20, 900.0
    models = [build_smooth("wan"), build_smooth("wan")]
    for parameter in models[1].proj_out.parameters():
        parameter.mul_(1.5)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    settings = replace(DENSE, skip=StepCacheSettings(rule, threshold=0.2, first=0))
    with torch.no_grad():
        plain = in_turns(models, scheduler, inputs, steps, boundary)
        handles = [apply_draft_attention(model, settings, scheduler=scheduler) for model in models]
        ends, told = [], []
        for _ in range(2):
            ends.append(in_turns(models, scheduler, inputs, steps, boundary))
            told.append([handle.finish_run() for handle in handles])
        for handle in handles:
            handle.remove()
    turn = int((scheduler.timesteps >= boundary).sum())
    for high, low in told:
        assert [len(report.decisions) for report in (high, low)] == [turn, steps - turn]
        assert all(report.cancelled is None and report.notes == [] for report in (high, low))
        assert low.decisions[0].reason is Reason.HISTORY and 0 < len(computed(low)) < steps - turn
        if rule == "spread":
            # One plan of the whole list, of which each model takes its part.
            planned = planned_steps(steps, settings.skip.share, 0)
            assert turn not in planned
            assert [*computed(high), *(turn + at for at in computed(low))] == sorted({*planned, turn})
    assert torch.equal(*ends) and 0.0 < off(ends[0], plain) < 0.1


def test_a_compiled_model_forecasts_as_it_does_uncompiled_and_is_not_compiled_again() -> None:
    model, inputs, steps = build_smooth("wan"), MODELS["wan"].inputs(1), 6
    skip = StepCacheSettings("spread", share=0.5)
    handle, scheduler = applied(model, None, replace(DENSE, skip=skip))
    with torch.no_grad():
        expected = guided(model, scheduler, inputs, steps)
        eager = handle.finish_run()
        compiled, stats = compiled_alone(model)
        graphs = []
        for _ in range(2):
            found = guided(compiled, scheduler, inputs, steps)
            report = handle.finish_run()
            graphs.append(stats["unique_graphs"])
            assert report.outcomes == eager.outcomes == {"computed": 8, "forecast": 4} and report.notes == []
            assert computed(report) == computed(eager)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert graphs[0] > 0 and graphs == graphs[:1] * 2, graphs
    handle.remove()
