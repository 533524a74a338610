"""The diffusers host evaluates the transformer through the run: its forms, skipped, compiled, cancelled."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
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
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from draftattention.draftattn_core import Schedule, Settings
from draftattention.draftattn_core.hosts.diffusers.apply import DraftAttentionHandle, apply_draft_attention
from draftattention.draftattn_core.run.evaluation import Answer, Evaluation, Outcome
from draftattention.draftattn_core.run.events import EvaluationDone, RunDone, RunStarted
from draftattention.draftattn_core.run.step_cache import StepCacheSettings
from draftattention.draftattn_core.run.step_cache.settings import Rule
from draftattention.draftattn_core.run.step_cache.spread import planned_steps
from tests.comfyui.plain_easycache import Step, answers_off, decisions
from tests.diffusers_models import MODELS, build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMALL = {"q_block": 16, "k_block": 8, "auto_gain": False}
SPARSE = Settings(schedule=Schedule(((0.0, 0.3),)), **SMALL)
DENSE = Settings(schedule=Schedule(((0.0, 1.0),)), **SMALL)


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Cache:
    """A step cache that answers with the last prediction of the same branches where `skip(evaluation)` says so."""

    def __init__(self, skip: Callable[[Evaluation], bool] = lambda evaluation: False) -> None:
        self.skip = skip
        self.asked: list[Evaluation] = []
        self.latents: list[Tensor] = []
        self.last: dict[Any, Tensor] = {}
        self.cleared = 0

    def answer(self, x: Tensor, evaluation: Evaluation) -> Answer | None:
        self.asked.append(evaluation)
        self.latents.append(x)
        last = self.last.get(evaluation.branches[0].key)
        return Answer(last, Outcome.REUSED) if last is not None and self.skip(evaluation) else None

    def store(self, x: Tensor, prediction: Tensor, evaluation: Evaluation) -> None:
        self.last[evaluation.branches[0].key] = prediction

    def clear(self) -> None:
        self.cleared += 1


def guided(model: Any, scheduler: Any, inputs: dict[str, Any], steps: int, stop: int | None = None) -> Tensor:
    """A pipeline's loop with guidance, condition first; the texts are the same tensors at every step.

    Args:
        stop: the step before which it is interrupted, as a pipeline does it: by going through the rest idly.
    """
    text = inputs["encoder_hidden_states"]
    latents = inputs["hidden_states"]
    scheduler.set_timesteps(steps)
    other = -text
    for index, t in enumerate(scheduler.timesteps):
        if stop is not None and index >= stop:
            continue
        here = {**inputs, "hidden_states": latents, "timestep": t.expand(latents.shape[0])}
        velocity = model(**here, return_dict=False)[0]
        uncond = model(**{**here, "encoder_hidden_states": other}, return_dict=False)[0]
        latents = scheduler.step(uncond + 2.0 * (velocity - uncond), t, latents, return_dict=False)[0]
    return latents


def applied(model: Any, cache: Cache | None, settings: Settings = SPARSE) -> tuple[DraftAttentionHandle, Any]:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    handle = apply_draft_attention(model, settings, scheduler=scheduler)
    if cache is not None:
        handle.new_step_cache = lambda: cache
    return handle, scheduler


def calls_of(model: Any) -> list[int]:
    """Grows with every call of the model's first block."""
    calls: list[int] = []
    blocks = model.blocks if hasattr(model, "blocks") else model.transformer_blocks
    blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_an_evaluation_is_asked_for_once_with_its_branch_and_place() -> None:
    model, inputs, cache = build("wan"), MODELS["wan"].inputs(2), Cache()
    calls = calls_of(model)
    handle, scheduler = applied(model, cache)
    with handle:
        guided(model, scheduler, inputs, 4)
    assert len(cache.asked) == len(calls) == 8 and handle.report.outcomes == {"computed": 8}
    assert [seen.sampler_step for seen in cache.asked] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [seen.is_last for seen in cache.asked] == [False] * 6 + [True] * 2
    assert [seen.conditional for seen in cache.asked] == [0, None] * 4
    assert [seen.level for seen in cache.asked] == pytest.approx([float(s) for s in scheduler.sigmas[:4] for _ in "ab"])
    assert {seen.steps for seen in cache.asked} == {4} and {seen.prediction for seen in cache.asked} == {"flow"}
    keys = [seen.branches[0].key for seen in cache.asked]
    assert keys[0] != keys[1] and keys == keys[:2] * 4
    assert {(seen.branches[0].batch.start, seen.branches[0].batch.stop) for seen in cache.asked} == {(0, 2)}
    assert handle.run.finished and cache.cleared == 1 and set(handle.report.step_seconds()) == {0, 1, 2, 3}


def test_one_condition_evaluated_twice_at_a_step_is_two_branches() -> None:
    model, inputs, cache = build("wan"), MODELS["wan"].inputs(1), Cache()
    handle, _ = applied(model, cache)
    with handle:
        handle._clock._scheduler.set_timesteps(2)
        for t in handle._clock._scheduler.timesteps:
            for _ in range(2):
                model(**{**inputs, "timestep": t.expand(1)})
    keys = [seen.branches[0].key for seen in cache.asked]
    assert keys[0] != keys[1] and keys[2:] == keys[:2]
    assert [seen.conditional for seen in cache.asked] == [0, None] * 2


def test_the_step_cache_sees_the_bare_latent(name: str) -> None:
    """Without the channels of conditions that image-to-video pipelines put behind it."""
    model, inputs, cache = build(name), MODELS[name].inputs(1), Cache()
    handle, _ = applied(model, cache, DENSE)
    with handle:
        out = model(**inputs, return_dict=False)[0]
    assert cache.latents[0].shape[1] == out.shape[1] == 4
    assert torch.equal(cache.latents[0], inputs["hidden_states"][:, :4])


@pytest.mark.parametrize("form", ["tuple", "class", "positional"])
def test_an_evaluation_that_is_not_computed_is_returned_in_the_models_form(name: str, form: str) -> None:
    model, inputs = build(name), MODELS[name].inputs(2)
    cache = Cache(lambda evaluation: True)
    calls = calls_of(model)
    handle, _ = applied(model, cache)
    args: tuple[Any, ...] = ()
    if form == "positional":
        names = ["hidden_states", "timestep", "encoder_hidden_states"]
        args, inputs = tuple(inputs[key] for key in names), {k: v for k, v in inputs.items() if k not in names}
    with handle:
        given = {**inputs, **({"return_dict": False} if form == "tuple" else {})}
        computed = model(*args, **given)
        # Asked again at one noise level it would be another branch.
        handle._branches._visits.clear()
        reused = model(*args, **given)
    assert len(calls) == 1 and handle.report.outcomes == {"computed": 1, "reused": 1}
    assert type(reused) is type(computed) and isinstance(
        computed, tuple if form == "tuple" else Transformer2DModelOutput
    )
    assert reused[0].shape == computed[0].shape and reused[0].dtype == computed[0].dtype
    assert torch.equal(reused[0], computed[0])
    if form != "tuple":
        assert torch.equal(reused.sample, computed.sample)


def test_a_skipped_step_has_no_attention_calls_and_half_precision_stays() -> None:
    model, inputs = build("wan").to(torch.bfloat16), MODELS["wan"].inputs(1)
    inputs = {key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in inputs.items()}
    cache = Cache(lambda evaluation: evaluation.sampler_step % 2 == 1)
    calls = calls_of(model)
    handle, scheduler = applied(model, cache)
    with handle:
        out = guided(model, scheduler, inputs, 4)
    assert len(calls) == 4 and handle.report.outcomes == {"computed": 4, "reused": 4}
    assert {call.position.step for call in handle.report.calls if call.position} == {0, 2}
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()


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


def put_right(model: Any, scheduler: Any, inputs: dict[str, Any], steps: int, share: float) -> Tensor:
    """`guided` by Euler's rule, where planned steps ask the model and first put the latent right, and those between go
    on by a line through what is known."""
    text, x = inputs["encoder_hidden_states"], inputs["hidden_states"]
    scheduler.set_timesteps(steps)
    planned = planned_steps(steps, share)
    known: list[tuple[float, Tensor]] = []
    answered: list[tuple[float, float, Tensor]] = []

    def line(s: float, a: tuple[float, Tensor], b: tuple[float, Tensor]) -> Tensor:
        return b[1] + (a[1] - b[1]) * (s - b[0]) / (a[0] - b[0])

    for index, t in enumerate(scheduler.timesteps):
        s, after = float(scheduler.sigmas[index]), float(scheduler.sigmas[index + 1])
        if index in planned:
            here = {**inputs, "hidden_states": x, "timestep": t.expand(x.shape[0])}
            velocity, uncond = (model(**{**here, "encoder_hidden_states": text * sign})[0] for sign in (1, -1))
            velocity = uncond + 2.0 * (velocity - uncond)
            now = (s, velocity - x)
            off = sum((end - start) * (line(start, now, known[-1]) - guess) for start, end, guess in answered)
            known, answered = [*known, now], []
            x = x + off + velocity * (after - s)
        else:
            guess = known[-1][1] if len(known) == 1 else line(s, known[-1], known[-2])
            answered.append((s, after, guess))
            x = x + (x + guess) * (after - s)
    return x


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
        "call disable_cache on it, or skip no steps"
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


def test_every_run_has_a_life_of_its_own() -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    caches: list[Cache] = []

    def make() -> Cache:
        caches.append(Cache())
        return caches[-1]

    handle, scheduler = applied(model, None)
    handle.new_step_cache = make
    heard: list[Any] = []
    for kind in (RunStarted, EvaluationDone, RunDone):
        handle.events.subscribe(kind, lambda event: heard.append(type(event).__name__))
    with handle:
        guided(model, scheduler, inputs, 2)
        first = handle.run
        guided(model, scheduler, inputs, 3)
        assert handle.run is not first and first.finished and len(first.calls.cache) == 0
        assert first.report.cancelled is None
    assert [len(cache.asked) for cache in caches] == [4, 6] and [cache.cleared for cache in caches] == [1, 1]
    assert heard == ["RunStarted", *["EvaluationDone"] * 4, "RunDone", "RunStarted", *["EvaluationDone"] * 6, "RunDone"]


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
            # Video to video.
            scheduler.set_timesteps(20)
            scheduler.set_begin_index(8)
            latents = inputs["hidden_states"]
            for t in scheduler.timesteps[8:]:
                velocity = model(**{**inputs, "hidden_states": latents, "timestep": t.expand(1)}, return_dict=False)[0]
                latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
        ends.append(latents)
        outcomes.append(handle.report.outcomes)
    assert outcomes[0] == outcomes[1] and set(outcomes[0]) > {"computed"}
    assert torch.equal(*ends)


def test_removal_puts_the_models_own_forward_back() -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    expected = model(**inputs)[0]
    handle, _ = applied(model, None)
    assert "forward" in vars(model)
    handle.remove()
    assert "forward" not in vars(model) and torch.equal(model(**inputs)[0], expected)


def test_a_forward_that_was_wrapped_before_or_after_ours_stays() -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    expected, seen = model(**inputs)[0], []

    def wrapped(inner: Any, which: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            seen.append(which)
            return inner(*args, **kwargs)

        return forward

    before = model.forward = wrapped(model.forward, "before")
    handle, _ = applied(model, None)
    model(**inputs)
    assert seen == ["before"] and handle.report.calls_sparse == 3
    after = model.forward = wrapped(model.forward, "after")
    handle.remove()
    assert model.forward is after
    seen.clear()
    assert torch.equal(model(**inputs)[0], expected) and seen == ["after", "before"]
    assert handle.report.calls_sparse == 3
    model.forward = before
    handle, _ = applied(model, None)
    handle.remove()
    assert model.forward is before


def test_an_interrupted_pipeline_leaves_a_report_that_says_how_far_it_came(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    handle, scheduler = applied(model, None)
    with caplog.at_level(logging.INFO), handle:
        guided(model, scheduler, inputs, 20, stop=3)
    assert handle.report.cancelled == "cancelled after step 3 of 20"
    assert caplog.messages == [handle.report.summary()]
    assert caplog.messages[0].startswith("DraftAttention: cancelled after step 3 of 20; 18 of 18 self-attention calls")


def test_a_run_that_an_exception_ends_says_how_far_it_came_and_the_next_one_is_new() -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    handle, scheduler = applied(model, None)
    broken = []

    def fail(*_: Any) -> None:
        if len(broken) == 4:
            raise KeyboardInterrupt
        broken.append(1)

    hook = model.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        guided(model, scheduler, inputs, 8)
    hook.remove()
    first = handle.report
    assert first.cancelled == "cancelled after step 2 of 8"
    guided(model, scheduler, inputs, 2)
    assert handle.report is not first and handle.report.cancelled is None
    with pytest.raises(KeyError), handle:
        guided(model, scheduler, inputs, 8, stop=5)
        raise KeyError("user code")
    assert handle.report.cancelled == "cancelled after step 5 of 8"


def test_a_complete_run_and_the_first_expert_of_two_are_not_called_cancelled() -> None:
    first, second, inputs = build("wan"), build("wan"), MODELS["wan"].inputs(1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    handles = [apply_draft_attention(model, SPARSE, scheduler=scheduler) for model in (first, second)]
    scheduler.set_timesteps(4)
    latents = inputs["hidden_states"]
    for index, t in enumerate(scheduler.timesteps):
        velocity = (first, second)[index >= 2](**{**inputs, "hidden_states": latents, "timestep": t.expand(1)})[0]
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    for handle in handles:
        handle.remove()
        assert handle.report.cancelled is None and handle.report.calls_sparse == 6


def test_a_compiled_model_is_compiled_still_and_not_again_at_later_steps_or_runs() -> None:
    import torch._dynamo
    import torch._dynamo.utils

    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    handle, scheduler = applied(model, None)
    with torch.no_grad():
        expected = guided(model, scheduler, inputs, 3)
        torch._dynamo.reset()
        stats = torch._dynamo.utils.counters["stats"]
        stats.clear()
        compiled = torch.compile(model, backend="eager")
        graphs = []
        for _ in range(2):
            out = guided(compiled, scheduler, inputs, 3)
            graphs.append(stats["unique_graphs"])
            assert handle.report.calls_sparse == 18 and handle.report.notes == []
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert graphs[0] > 0 and graphs == graphs[:1] * 2, graphs
    handle.remove()
