"""Skipped evaluations in the diffusers host: by every rule, corrected, beside another cache, after a run cut short."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import (
    DPMSolverMultistepScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.evaluation import Outcome
from draftattention.draftattn_core.run.step_cache import Reason, RunStepCache, StepCacheSettings, nothing_to_gain
from draftattention.draftattn_core.run.step_cache.settings import Rule
from draftattention.draftattn_core.run.step_cache.spread import planned_steps
from tests.comfyui.plain_easycache import Step, answers_off, decisions
from tests.comfyui.plain_spread import euler_put_right
from tests.diffusers_models import MODELS, build
from tests.diffusers_runs import DENSE, applied, calls_of, guided

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("rule", ["forecast", "easycache"])
def test_settings_skip_steps_of_a_guided_batch_and_a_threshold_of_zero_is_the_model_to_the_bit(rule: Rule) -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(2)
    calls = calls_of(model)

    def run(skip: StepCacheSettings) -> tuple[Tensor, int, dict[str, int]]:
        calls.clear()
        handle, scheduler = applied(model, None, replace(DENSE, skip=skip))
        with handle:
            out = guided(model, scheduler, inputs, 10)
        return out, len(calls), handle.report.outcomes

    plain, every, _ = run(StepCacheSettings())
    exact, computed, outcomes = run(StepCacheSettings(rule, threshold=0.0))
    assert torch.equal(exact, plain) and computed == every == outcomes["computed"] == 20
    # Random weights: nothing about the output can be foretold, so the threshold lets everything pass.
    near, computed, outcomes = run(StepCacheSettings(rule, threshold=100.0))
    assert near.shape == plain.shape and torch.isfinite(near).all() and not torch.equal(near, plain)
    assert computed == outcomes.pop("computed") < 20
    assert outcomes == {"forecast" if rule == "forecast" else "reused": 20 - computed}


def test_easycache_decides_as_the_published_rule_does_on_what_a_run_recorded() -> None:
    model, inputs, steps, tau, first = build("wan"), MODELS["wan"].inputs(2), 20, 1.5, 3
    calls = calls_of(model)
    skip = StepCacheSettings("easycache", tau, first, max_skips=None)
    handle, scheduler = applied(model, None, replace(DENSE, skip=skip))
    text, latents = inputs["encoder_hidden_states"], inputs["hidden_states"]
    # The condition and the one it is set against, as a pipeline has them: the same tensors at every step.
    texts = (text, -text)
    recorded: tuple[list[Step], list[Step]] = ([], [])
    scheduler.set_timesteps(steps)
    with torch.no_grad(), handle:
        for t in scheduler.timesteps:
            velocities = []
            for words, of_one in zip(texts, recorded, strict=True):
                before = len(calls)
                here = {**inputs, "hidden_states": latents, "timestep": t.expand(2)}
                velocities.append(model(**{**here, "encoder_hidden_states": words}, return_dict=False)[0])
                of_one.append(Step(latents, velocities[-1], len(calls) > before))
            velocity, other = velocities
            latents = scheduler.step(other + 2.0 * (velocity - other), t, latents, return_dict=False)[0]
    said, nearest = decisions(recorded[0], tau, first)
    ours = "".join("C" if made.outcome is Outcome.COMPUTED else "r" for made in handle.report.decisions)
    assert ours == said and len(ours) == steps
    assert "r" in ours and "C" in ours[first:-1], "a run that tells nothing of the rule"
    assert nearest > 1e-3, "rounding may decide"
    assert [one.computed for one in recorded[1]] == [one.computed for one in recorded[0]]
    assert max(map(answers_off, recorded)) < 1e-5


def enters(model: Any, scheduler: Any, inputs: dict[str, Any], steps: int, at: int) -> Tensor:
    """Video to video: one condition from the step `at` on. Returns the last latent."""
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(at)
    latents: Tensor = inputs["hidden_states"]
    for t in scheduler.timesteps[at:]:
        velocity = model(**{**inputs, "hidden_states": latents, "timestep": t.expand(1)}, return_dict=False)[0]
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


def put_right(model: Any, scheduler: Any, inputs: dict[str, Any], steps: int, share: float) -> Tensor:
    """`guided` as a plain restatement of `spread` makes it."""
    text = inputs["encoder_hidden_states"]
    scheduler.set_timesteps(steps)

    def velocity(x: Tensor, step: int) -> Tensor:
        here = {**inputs, "hidden_states": x, "timestep": scheduler.timesteps[step].expand(x.shape[0])}
        cond, uncond = (model(**{**here, "encoder_hidden_states": text * sign})[0] for sign in (1, -1))
        return uncond + 2.0 * (cond - uncond)

    planned = planned_steps(steps, share)
    return euler_put_right(velocity, inputs["hidden_states"], scheduler.sigmas.tolist(), planned)


def test_a_plan_under_flow_match_euler_ends_where_a_latent_put_right_at_each_computed_step_does() -> None:
    model, inputs, skip = (
        build("wan"),
        MODELS["wan"].inputs(2),
        StepCacheSettings("spread", share=0.4, max_forecast_error=math.inf),
    )
    with torch.no_grad():
        expected = put_right(model, FlowMatchEulerDiscreteScheduler(shift=5.0), inputs, 12, skip.share)
        plain = guided(model, FlowMatchEulerDiscreteScheduler(shift=5.0), inputs, 12)
        handle, scheduler = applied(model, None, replace(DENSE, skip=skip))
        with handle:
            found = guided(model, scheduler, inputs, 12)
    assert [made.corrected for made in handle.report.decisions].count(True) == 4
    assert handle.report.outcomes == {"computed": 10, "forecast": 14}
    off, apart = ((one - expected).norm() / expected.norm() for one in (found, plain))
    assert off < 1e-4 and off < 0.02 * apart


def test_under_other_schedulers_a_plan_skips_and_corrects_nothing() -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    for scheduler, why in (
        (UniPCMultistepScheduler(**flow), "other sampler than euler"),
        (FlowMatchEulerDiscreteScheduler(shift=5.0, stochastic_sampling=True), "noise added by the sampler"),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **flow), "noise added by the sampler"),
        (FlowMatchLCMScheduler(shift=5.0), "noise added by the sampler"),
        (SASolverScheduler(**flow), "noise added by the sampler"),
    ):
        ends = []
        for correct in (True, False):
            skip = StepCacheSettings("spread", share=0.4, correct=correct, max_forecast_error=math.inf)
            torch.manual_seed(0)
            with (
                torch.no_grad(),
                apply_draft_attention(model, replace(DENSE, skip=skip), scheduler=scheduler) as handle,
            ):
                ends.append(guided(model, scheduler, inputs, 12))
            assert handle.report.outcomes == {"computed": 10, "forecast": 14}
            assert not any(made.corrected for made in handle.report.decisions)
            told = {str(made.uncorrected) for made in handle.report.decisions} - {"None"}
            assert told == ({why} if correct else set())
        assert torch.equal(*ends)


@pytest.mark.parametrize("rule", ["spread", "forecast", "easycache"])
def test_a_run_of_few_steps_skips_nothing_and_says_what_comfyui_says(
    rule: Rule, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    skip = StepCacheSettings(rule, threshold=100.0, first=1, max_forecast_error=math.inf)
    handle, scheduler = applied(model, None, replace(DENSE, skip=skip))
    with torch.no_grad(), handle:
        guided(model, scheduler, inputs, 4)
        said = f"DraftAttention skips no steps: {nothing_to_gain(skip, 4)}"
        assert "nothing to gain at 4 steps" in said
        assert handle.report.notes == [said] and caplog.messages.count(said) == 1
        assert handle.report.outcomes == {"computed": 8} and handle.report.skip.rule == "off"
        # The next run of the same pipeline has something to gain.
        guided(model, scheduler, inputs, 12)
        assert handle.report.notes == [] and handle.report.outcomes["computed"] < 24


def test_a_step_cache_of_ones_own_is_asked_however_few_the_steps() -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    handle, scheduler = applied(model, None, replace(DENSE, skip=StepCacheSettings("easycache")))
    handle.new_step_cache = lambda: RunStepCache(StepCacheSettings("easycache", threshold=100.0, first=0))
    with torch.no_grad(), handle:
        guided(model, scheduler, inputs, 4)
    assert handle.report.notes == [] and handle.report.outcomes == {"computed": 6, "reused": 2}


def test_a_run_that_enters_so_late_that_few_steps_are_left_has_nothing_to_gain_from_a_threshold() -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    ends = {}
    for rule in ("easycache", "spread"):
        skip = StepCacheSettings(rule, threshold=100.0, first=1, max_forecast_error=math.inf)
        handle, scheduler = applied(model, None, replace(DENSE, skip=skip))
        with torch.no_grad(), handle:
            enters(model, scheduler, inputs, 20, 16)
        ends[rule] = handle.report
    assert ends["easycache"].outcomes == {"computed": 4}
    assert [str(nothing_to_gain(StepCacheSettings("easycache", first=1), 4))] == [
        note.removeprefix("DraftAttention skips no steps: ") for note in ends["easycache"].notes
    ]
    # A plan is one of the whole list, whatever part of it the run takes.
    assert ends["spread"].notes == [] and ends["spread"].outcomes["forecast"] > 0


@pytest.mark.parametrize("rule", ["spread", "forecast", "easycache"])
def test_without_scheduler_timesteps_or_steps_nothing_is_skipped_and_the_reason_is_told(rule: Rule) -> None:
    model, inputs, scheduler = build("wan"), MODELS["wan"].inputs(1), FlowMatchEulerDiscreteScheduler(shift=5.0)
    skip = StepCacheSettings(rule, threshold=100.0, max_forecast_error=math.inf)
    with torch.no_grad(), apply_draft_attention(model, replace(DENSE, skip=skip)) as handle:
        guided(model, scheduler, inputs, 10)
    assert handle.report.outcomes == {"computed": 20}
    assert {made.reason for made in handle.report.decisions} == {Reason.LENGTH}
    assert handle.report.notes == [
        "progress was read from the noise level alone: pass scheduler, timesteps or steps",
    ]


def test_beside_a_cache_of_diffusers_own_a_run_skips_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    handle, scheduler = applied(
        model, None, replace(DENSE, skip=StepCacheSettings("spread", max_forecast_error=math.inf))
    )

    def run() -> list[str]:
        with torch.no_grad(), model.cache_context("cond"):
            guided(model, scheduler, inputs, 10)
        return [note for note in handle.report.notes if "another cache" in note]

    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    told = run()
    assert handle.report.outcomes == {"computed": 20} and handle.report.skip.rule == "off"
    assert told == [
        "DraftAttention skips no steps: another cache (FirstBlockCache) is on this model; "
        "switch it off (disable_cache, if it is one of diffusers' own), or skip no steps"
    ]
    assert caplog.messages.count(told[0]) == 1
    model.disable_cache()
    assert run() == [] and handle.report.outcomes["forecast"] > 0
    handle.remove()
    # Whoever was to skip nothing has nothing to hear.
    handle, scheduler = applied(model, None, DENSE)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert run() == []
    handle.remove()


@pytest.mark.parametrize("rule", ["spread", "forecast", "easycache"])
def test_a_run_cut_short_leaves_no_history_to_one_that_enters_further_on(rule: Rule) -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    skip = StepCacheSettings(rule, threshold=100.0, max_reach=1e9, max_forecast_error=math.inf)
    ends, outcomes = [], []
    for cut_short in (False, True):
        handle, scheduler = applied(model, None, replace(DENSE, skip=skip))
        with torch.no_grad(), handle:
            if cut_short:
                guided(model, scheduler, {**inputs, "hidden_states": inputs["hidden_states"] + 1.0}, 20, stop=3)
            ends.append(enters(model, scheduler, inputs, 20, 8))
        outcomes.append(handle.report.outcomes)
    assert outcomes[0] == outcomes[1] and set(outcomes[0]) > {"computed"}
    assert torch.equal(*ends)
