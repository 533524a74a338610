"""Runs in ComfyUI's Python: the model is evaluated through the run, and a cancelled run says how far it came."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import host
import torch
from toy_runs import LATENT, LAYERS, TEXT, Logged, difference, half_dense, node, run, wan

CHECKS, check = host.registry()
OTHER_TEXT = [[torch.zeros(1, 7, 64), {}]]


class Cache:
    """A step cache that keeps what it is told, and answers with what `reply(evaluation, prediction)` makes of the last
    prediction of the same branches."""

    def __init__(self, reply: Callable[[Any, torch.Tensor], torch.Tensor | None] = lambda *_: None) -> None:
        self.reply = reply
        self.asked: list[Any] = []
        self.stored: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
        self.cleared = 0
        self.last: dict[Any, torch.Tensor] = {}

    def answer(self, x: torch.Tensor, evaluation: Any) -> Any:
        self.asked.append(evaluation)
        last = self.last.get(self.key(evaluation))
        prediction = None if last is None else self.reply(evaluation, last)
        core = host.pack("draftattn_core.run.evaluation")
        return None if prediction is None else core.Answer(prediction, core.Outcome.REUSED)

    def store(self, x: torch.Tensor, prediction: torch.Tensor, evaluation: Any) -> None:
        self.stored.append((x.clone(), prediction.clone(), evaluation))
        self.last[self.key(evaluation)] = prediction.clone()

    def clear(self) -> None:
        self.cleared += 1

    @staticmethod
    def key(evaluation: Any) -> Any:
        return (tuple(branch.key for branch in evaluation.branches), evaluation.window)


def cached(model: Any, cache: Cache, **choices: Any) -> tuple[Any, Any, list[int]]:
    """The patched model with a step cache, its handle, and a list that grows with every call of the network."""
    calls: list[int] = []

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return executor(*args, **kwargs)

    patched, handle = host.apply(model, **choices)
    handle.new_step_cache = lambda: cache
    patched.add_wrapper_with_key("diffusion_model", "check", count)
    return patched, handle, calls


def branches(cache: Cache) -> list[tuple[int, int | None, list[tuple[int, int]]]]:
    """Of every evaluation: its step, which branch is the condition, and the batch of each branch."""
    return [
        (
            seen.sampler_step,
            seen.conditional,
            [(branch.batch.start, branch.batch.stop) for branch in seen.branches],
        )
        for seen in cache.asked
    ]


@check("an evaluation is asked for once, with its branches: guidance stacked, split, and none")
def _() -> None:
    for negative, cfg, expected in (
        (TEXT, 3.0, [(step, 1, [(0, 1), (1, 2)]) for step in range(3)]),
        (OTHER_TEXT, 3.0, [(step, kind, [(0, 1)]) for step in range(3) for kind in (0, None)]),
        (TEXT, 1.0, [(step, 0, [(0, 1)]) for step in range(3)]),
    ):
        model, cache = wan(), Cache()
        plain = run(model, negative=negative, cfg=cfg, steps=3)
        patched, handle, calls = cached(model, cache, sparsity=0.0)
        assert torch.equal(run(patched, negative=negative, cfg=cfg, steps=3), plain)
        assert sorted(branches(cache), key=str) == sorted(expected, key=str), branches(cache)
        assert len(calls) == len(expected) == len(cache.stored) == handle.report.outcomes["computed"]
        keys = {branch.key for seen in cache.asked for branch in seen.branches}
        assert len(keys) == (1 if cfg == 1.0 else 2), keys
        assert cache.cleared == 1 and handle.run.finished


@check("evaluations between steps, in halves of a run and in context windows know where they stand")
def _() -> None:
    cache = Cache()
    patched, _, calls = cached(wan(), cache)
    run(patched, steps=4, sampler="heun")
    steps = [seen.sampler_step for seen in cache.asked]
    assert steps == [0, 1, 1, 2, 2, 3, 3] and len(calls) == 7, steps
    assert [seen.is_last for seen in cache.asked] == [False] * 5 + [True] * 2

    import comfy.samplers

    model, cache = wan(), Cache()
    patched, _, _ = cached(model, cache)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 8)
    run(patched, steps=4, sigmas=sigmas[4:])
    assert [(seen.sampler_step, seen.steps) for seen in cache.asked] == [(step, 4) for step in range(4)]
    assert cache.asked[0].progress > 0.4 and abs(cache.asked[0].level - float(sigmas[4])) < 1e-6

    windows = node("nodes_context_windows", "WanContextWindowsManualNode")
    cache = Cache()
    model = windows.execute(wan(), 21, 8, "standard_static", 1, False, "pyramid", False).args[0]
    patched, _, calls = cached(model, cache)
    run(patched, torch.zeros(1, 16, 9, 6, 10))
    seen = {evaluation.window for evaluation in cache.asked}
    assert None not in seen and len(seen) * 2 == len(cache.asked) == len(calls)


@check("a second pass over a condition with blocks patched is a branch of its own")
def _() -> None:
    skip = node("nodes_slg", "SkipLayerGuidanceDiT")
    cache = Cache()
    patched, _, _ = cached(wan(), cache)
    guided = skip.execute(patched, scale=3.0, start_percent=0.0, end_percent=1.0, double_layers="1").args[0]
    run(guided, negative=OTHER_TEXT, cfg=3.0, steps=3)
    keys = [evaluation.branches[0].key for evaluation in cache.asked]
    assert len(keys) == 9 and len(set(keys)) == 3, keys
    assert all(keys.count(key) == 3 for key in set(keys))


@check("an evaluation that the step cache answers never reaches the model")
def _() -> None:
    def odd(evaluation: Any, prediction: torch.Tensor) -> torch.Tensor | None:
        return prediction if evaluation.sampler_step % 2 else None

    for negative, cfg, each in ((TEXT, 3.0, 1), (OTHER_TEXT, 3.0, 2), (TEXT, 1.0, 1)):
        cache = Cache(odd)
        patched, handle, calls = cached(wan(), cache)
        out = run(patched, negative=negative, cfg=cfg, steps=4)
        assert out.shape == LATENT.shape and out.dtype == torch.float32 and out.isfinite().all()
        assert len(calls) == 2 * each and handle.report.outcomes == {"computed": 2 * each, "reused": 2 * each}
        assert {call.position.step for call in handle.report.calls if call.position} == {0, 2}
        assert handle.report.calls_sparse == 2 * each * LAYERS and not handle.report.notes


@check("the model's own prediction, given back by the step cache, makes the video that the model makes")
def _() -> None:
    shift = node("nodes_model_advanced", "ModelSamplingSD3")
    (model,) = shift().patch(wan(), 5.0)
    cache = Cache()
    patched, _, _ = cached(model, cache, sparsity=0.0)
    expected = run(patched, negative=TEXT, cfg=3.0, steps=4)
    kept = {evaluation.step: prediction for _, prediction, evaluation in cache.stored}
    again = Cache(lambda evaluation, _: kept[evaluation.step])
    again.last = cache.last
    again.key = lambda evaluation: next(iter(again.last))  # type: ignore[method-assign]
    patched, _, calls = cached(model, again, sparsity=0.0)
    assert difference(run(patched, negative=TEXT, cfg=3.0, steps=4), expected) < 1e-5 and not calls


@check("prediction and denoised latent are converted exactly: flow, eps, v and others")
def _() -> None:
    import comfy.model_sampling as sampling

    evaluations = host.pack("nodes.host.evaluations")
    x, prediction = torch.randn(2, 2, 1, 4, 3, 5, generator=torch.Generator().manual_seed(3))
    seen = set()
    for cls, name in evaluations.PREDICTIONS.items():
        if not hasattr(sampling, cls):
            continue
        base = sampling.ModelSamplingDiscreteFlow if cls == "CONST" else sampling.ModelSamplingDiscrete
        made = type("Sampling", (base, getattr(sampling, cls)), {})()
        made.sigma_data = getattr(made, "sigma_data", 1.0)
        assert evaluations.prediction_of(made) == name
        seen.add(name)
        for sigmas in ((0.9, 0.9), (0.3, 0.05)):
            sigma = torch.tensor(sigmas)
            denoised = made.calculate_denoised(sigma, prediction, x)
            found = evaluations.denoised_of(made, sigma, x)
            assert difference(found.denoised(x, prediction), denoised) < 1e-6, (cls, sigma)
            assert difference(found.prediction(x, denoised), prediction) < 2e-6 / min(sigmas), (cls, sigma)
    assert {"flow", "eps", "v", "edm", "x0"} <= seen, seen

    class Unknown(sampling.ModelSamplingDiscrete, sampling.EPS):
        def calculate_denoised(self, *_: Any) -> Any:
            raise AssertionError

    assert evaluations.prediction_of(Unknown()) == ""


@check("a step cache that fails has the evaluation computed")
def _() -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("broken on purpose")

    model = wan()
    plain = run(model, steps=4)
    patched, handle, calls = cached(model, Cache(fail), sparsity=0.0)
    assert torch.equal(run(patched, steps=4), plain)
    assert len(calls) == handle.report.outcomes["computed"] == 4
    assert any("broken on purpose" in note for note in handle.report.notes)


@check("a cancelled run says how far it came, and the next one begins with a text of its own")
def _() -> None:
    import comfy.model_management

    adapter, presets = host.pack("nodes.host.adapter"), host.pack("nodes.inputs.presets")
    interrupted = comfy.model_management.InterruptProcessingException

    def interrupt(step: int, *_: Any) -> None:
        if step == 2:
            raise interrupted

    told: list[str] = []
    choices = presets.Choices(schedule=half_dense(), min_tokens=0, blocks=(16, 8), tail="linear1")
    patched, handle = adapter.apply_draft_attention(wan(), choices, told.append)
    with Logged() as logged:
        try:
            run(patched, steps=20, callback=interrupt)
        except interrupted:
            pass
        else:
            raise AssertionError("the interruption did not arrive")
    assert handle.report.cancelled == "cancelled after step 3 of 20" and handle.run.finished
    assert told[0] == "step 1 of 20: dense start as planned"
    assert told[-1] == logged.lines[-1] == handle.report.summary()
    assert told[-1].startswith("DraftAttention: cancelled after step 3 of 20;") and "nothing was sparse" not in told[-1]
    told.clear()
    run(patched, steps=2)
    assert told[0] == "step 1 of 2: dense start as planned" and handle.report.cancelled is None
    assert not any("cancelled" in text for text in told)

    def inside(executor: Any, *args: Any, **kwargs: Any) -> Any:
        if handle.run.steps.done == 2:
            raise interrupted
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key("diffusion_model", "check", inside)
    with contextlib.suppress(interrupted):
        run(patched, steps=4)
    assert handle.report.cancelled == "cancelled after step 1 of 4", "the second step was not done"
