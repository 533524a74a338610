"""The diffusers host evaluates the transformer through the run: forms, branches, each run its own life, compilation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.evaluation import Answer, Evaluation, Outcome
from draftattention.draftattn_core.run.events import EvaluationDone, RunDone, RunStarted
from tests.diffusers_models import MODELS, build
from tests.diffusers_runs import DENSE, SPARSE, applied, calls_of, compiled_alone, guided

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


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


def test_tokens_at_several_noise_levels_are_computed_since_no_history_is_of_one_level() -> None:
    """As under diffusion forcing; a frame that is given stands at 0, beside one level of all others."""
    model, inputs, cache = build("wan"), MODELS["wan"].inputs(1), Cache()
    frames, *sides = inputs["hidden_states"].shape[2:]
    frame = sides[0] * sides[1] // 4
    even = torch.full((1, frames * frame), 900.0)
    given, several = even.clone(), even.clone()
    given[:, :frame], several[:, :frame] = 0.0, 700.0
    handle, _ = applied(model, cache, DENSE)
    with handle, torch.no_grad():
        for timestep in (even, given, several):
            model(**{**inputs, "timestep": timestep})
    assert len(cache.asked) == 2 and handle.report.outcomes == {"computed": 3}


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


@pytest.mark.parametrize("ends", ["the next run", "finish_run", "remove", "the end of a with block"])
def test_a_finished_run_is_told_in_one_line_wherever_it_ends(ends: str, caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    with caplog.at_level(logging.INFO, logger="draftattention"):
        handle, scheduler = applied(model, None)
        guided(model, scheduler, inputs, 2)
        first = handle.report
        assert caplog.messages == []
        if ends == "the next run":
            guided(model, scheduler, inputs, 3)
            assert handle.report is not first
        elif ends == "finish_run":
            handle.finish_run()
        elif ends == "the end of a with block":
            with handle:
                pass
        if ends != "the next run":
            handle.remove()
        told = [record for record in caplog.records if record.name.startswith("draftattention")]
        assert [record.getMessage() for record in told] == [first.summary()]
        assert told[0].levelno == logging.INFO
        assert told[0].getMessage().startswith("DraftAttention: 12 of 12 self-attention calls sparse")
        handle.remove()
    assert len(caplog.messages) == (2 if ends == "the next run" else 1)


def test_a_run_that_breaks_in_a_with_block_is_told_once_and_one_that_never_began_not_at_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    with caplog.at_level(logging.INFO, logger="draftattention"):
        handle, scheduler = applied(model, None)
        model.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), handle:
            guided(model, scheduler, inputs, 3)
        assert caplog.messages == [handle.report.summary()]
        assert handle.report.cancelled == "cancelled in step 1 of 3"
        caplog.clear()
        applied(model, None)[0].remove()
    assert caplog.messages == []


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
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    handle, scheduler = applied(model, None)
    with torch.no_grad():
        expected = guided(model, scheduler, inputs, 3)
        compiled, stats = compiled_alone(model)
        graphs = []
        for _ in range(2):
            out = guided(compiled, scheduler, inputs, 3)
            graphs.append(stats["unique_graphs"])
            assert handle.report.calls_sparse == 18 and handle.report.notes == []
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert graphs[0] > 0 and graphs == graphs[:1] * 2, graphs
    handle.remove()
