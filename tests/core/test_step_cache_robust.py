"""What may be relied upon whatever happens around the step cache: exactness, errors, threads, refused settings."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from draftattention.draftattn_core.run.step_cache import Decision, Reason, RunStepCache, StepCacheSettings
from draftattention.draftattn_core.run.step_cache.cache import MAX_ERRORS

from .step_cases import (
    BOTH,
    EASY,
    FORECAST,
    SHAPE,
    Host,
    Model,
    levels,
    never,
    noise,
    outcomes,
    reasons,
    run,
    smooth_model,
    walk,
)


@pytest.mark.parametrize("settings", [EASY, FORECAST, replace(FORECAST, quantity="velocity")], ids=str)
def test_hosts_may_change_in_place_what_they_passed(settings: StepCacheSettings) -> None:
    runs = []
    for spoil in (False, True):
        cache = RunStepCache(settings)
        host = Host(cache, steps=20)
        found = []
        for i, s in enumerate((0.9, 0.8, 0.7, 0.6)):
            x = noise(i)
            out = host.ask(smooth_model(0), x, s)
            found.append(out.clone())
            if spoil:
                x.fill_(7.0)
                out.fill_(7.0)
        runs.append(found)
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@BOTH
def test_threshold_0_computes_even_what_would_be_predicted_exactly(settings: StepCacheSettings) -> None:
    cache = RunStepCache(replace(settings, threshold=0.0, quantity="velocity"))
    host, velocity = Host(cache, steps=20), noise(9)
    walk(host, lambda x, s: velocity.clone(), [0.9, 0.8, 0.7, 0.6])
    assert len(host.calls) == 4 and cache.decisions[-1].estimate == 0.0


@BOTH
def test_two_runs_alike_are_equal_to_the_bit(settings: StepCacheSettings) -> None:
    ends = [run(Host(RunStepCache(settings), steps=20), smooth_model(0), levels(20)) for _ in range(2)]
    assert torch.equal(*ends)


@BOTH
@pytest.mark.parametrize("where", ["predict", "store", "tensors of another batch"])
def test_what_fails_in_here_is_computed_and_told(
    settings: StepCacheSettings, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RunStepCache(settings)
    host, model = Host(cache, steps=20), smooth_model(0)
    walk(host, model, [0.9, 0.8, 0.7])
    assert host.calls == [0.9, 0.8]

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose")

    name = "EasyCacheState" if settings.rule == "easycache" else "ForecastState"
    module = f"draftattention.draftattn_core.run.step_cache.{'easycache' if 'Easy' in name else 'forecast'}"
    with monkeypatch.context() as patch:
        if where == "tensors of another batch":
            x = noise(1, (3, *SHAPE[1:]))
            ask = host.of("a", "b", conditional=0)
        else:
            x, ask = noise(1), host.of("cond", "late", conditional=0) if where == "store" else host
            x = noise(1, (2, *SHAPE[1:])) if where == "store" else x
            patch.setattr(f"{module}.{name}.{where}", broken)
        assert torch.equal(ask.ask(model, x, 0.6), model(x, 0.6))
    assert cache.decisions[-1].reason is Reason.ERROR and cache.errors >= 1
    assert str(cache.decisions[-1].outcome) == "computed"
    # Nothing that was half done is built upon.
    walk(host, model, [0.5, 0.4])
    assert host.calls[-2:] == [0.5, 0.4]
    host.ask(never, noise(2), 0.3)


@BOTH
def test_after_a_few_errors_the_cache_stands_aside(settings: StepCacheSettings) -> None:
    cache = RunStepCache(settings)
    host, model = Host(cache, steps=20), smooth_model(0)
    wrong = host.of("a", "b", conditional=0)
    for i in range(MAX_ERRORS):
        # Three samples are no two branches.
        wrong.ask(model, noise(i, (3, *SHAPE[1:])), 0.9 - i / 100)
    walk(host, model, [0.8, 0.7, 0.6, 0.5])
    assert host.calls[-4:] == [0.8, 0.7, 0.6, 0.5]
    assert set(reasons(cache)[-4:]) == {Reason.STOOD_ASIDE} and cache.held_bytes == 0


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from tensors, for each of which a GPU is waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        replace(EASY, max_skips=2),
        replace(FORECAST, max_skips=2),
        StepCacheSettings("spread", share=0.4),
        StepCacheSettings("spread", share=0.4, correct=False),
    ],
    ids=lambda settings: f"{settings.rule}{'' if settings.correct else ' uncorrected'}",
)
def test_of_an_evaluation_one_number_is_read_from_the_device_at_most(
    settings: StepCacheSettings, stacked: bool
) -> None:
    cache, schedule, model = RunStepCache(settings), levels(20), smooth_model(0)
    host = Host(cache, steps=20, schedule=schedule, keys=("cond", "uncond") if stacked else ("cond",))
    calls = [host] if stacked else [host, host.of("uncond", conditional=None)]
    x, read = noise(0, (2 if stacked else 1, *SHAPE[1:])), []
    for i, s in enumerate(schedule[:-1]):
        with Reads() as reads:
            outs = [call.ask(model, x, s, i == 19) for call in calls]
        read.append(reads.count)
        x = x + (schedule[i + 1] - s) * outs[0]
    assert max(read) == 1, read
    assert {str(decision.outcome) for decision in cache.decisions} > {"computed"} and cache.errors == 0


@BOTH
def test_a_latent_that_is_not_finite_never_leads_to_a_skip(settings: StepCacheSettings) -> None:
    cache = RunStepCache(settings)
    host = Host(cache, steps=20)
    for i, s in enumerate((0.9, 0.8, 0.7, 0.6)):
        host.ask(lambda x, s: x * math.nan, noise(i), s)
    assert outcomes(cache.decisions) == "CCCC" and cache.errors == 0


@BOTH
@pytest.mark.parametrize("above", [2.0**-23, 0.05])
def test_a_run_that_begins_above_pure_noise_is_one_as_any_other(settings: StepCacheSettings, above: float) -> None:
    # As float32 schedules do by a rounding (shift 4.03 has 1.0000001), and schedules that a user multiplied.
    cache = RunStepCache(settings)
    host, model = Host(cache, steps=20, progress=0.5), smooth_model(0)
    for i, s in enumerate((1.0 + above, 0.9, 0.8)):
        for key, index in (("cond", 0), ("uncond", None)):
            host.of(key, conditional=index).ask(model, noise(30 + i), s)
    assert outcomes(cache.decisions)[:2] == "CC" and cache.decisions[2].branches_skipped == 2
    assert cache.errors == 0


@BOTH
def test_a_call_that_the_model_left_half_done_is_asked_again_in_the_same_evaluation(
    settings: StepCacheSettings,
) -> None:
    cache = RunStepCache(settings)
    host, model = Host(cache, steps=20), smooth_model(0)
    walk(host, model, [0.9])

    def out_of_memory(x: Tensor, s: float) -> Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        host.ask(out_of_memory, noise(31), 0.8)
    host.ask(model, noise(31), 0.8)
    host.ask(never, noise(32), 0.7)
    assert [d.index for d in cache.decisions] == [0, 1, 2]


@BOTH
def test_a_run_of_unknown_length_is_computed_for_nobody_can_tell_which_evaluation_is_the_last(
    settings: StepCacheSettings,
) -> None:
    for steps, known in ((None, False), (12, True)):
        cache = RunStepCache(settings)
        # No evaluation is said to be the last, as by a host that does not know.
        walk(Host(cache, steps=steps), smooth_model(0), levels(12)[:-1])
        assert (set(reasons(cache)) == {Reason.LENGTH}) is not known
        assert (outcomes(cache.decisions) == "C" * 12) is not known


@BOTH
def test_conditions_on_two_threads_share_each_decision(settings: StepCacheSettings) -> None:
    # As with one condition per GPU. The threads meet after every noise level, as a sampler makes them.
    cache = RunStepCache(StepCacheSettings(settings.rule, 0.3, 3))
    host = Host(cache, steps=30)
    meet, wrong = threading.Barrier(2, timeout=30), []

    def work(key: str, seed: int) -> None:
        mine, model = host.of(key, conditional=0 if key == "cond" else None), smooth_model(seed)
        try:
            x = noise(0)
            for i, s in enumerate(levels(30)[:-1]):
                x = x - 0.03 * mine.ask(model, x, s, i == 29)
                meet.wait()
        except Exception as error:
            wrong.append(error)
            meet.abort()

    threads = [threading.Thread(target=work, args=args) for args in (("cond", 0), ("uncond", 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and cache.errors == 0
    decided: tuple[Decision, ...] = cache.decisions
    assert [d.index for d in decided] == list(range(30)) and 0 < cache.computed < 30
    assert {(d.branches_computed, d.branches_skipped) for d in decided} == {(2, 0), (0, 2)}


def test_a_low_precision_model_is_answered_in_its_dtype_by_sums_in_float32() -> None:
    cache = RunStepCache(StepCacheSettings("forecast", 1e9, 2, quantity="difference"))
    host = Host(cache, steps=20)
    model: Model = lambda x, s: (x.float() * (1 + s)).to(torch.bfloat16)  # noqa: E731
    x = [noise(i).to(torch.bfloat16) for i in range(3)]
    v = [host.ask(model, x[i], s) for i, s in enumerate((0.9, 0.8))]
    answered = host.ask(never, x[2], 0.7)
    d = [v[i].double() - x[i].double() for i in range(2)]
    assert answered.dtype == torch.bfloat16
    assert torch.equal(answered, (x[2].double() + 2 * d[1] - d[0]).to(torch.bfloat16))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "taylor"},
        {"quantity": "features"},
        {"threshold": -0.1},
        {"threshold": math.nan},
        {"first": -1},
        {"first_share": 1.5},
        {"max_skips": 0},
        {"max_reach": 0.0},
        {"windows": ()},
        {"windows": ((0.0, 0.2), (0.3, 0.4), (0.5, 0.6))},
        {"windows": ((0.5, 0.4),)},
        {"windows": ((0.1, 0.5), (0.4, 0.8))},
        {"windows": ((0.1, 1.5),)},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        StepCacheSettings(**wrong)  # type: ignore[arg-type]


def test_a_model_without_published_values_is_refused() -> None:
    with pytest.raises(ValueError, match="wan2.1"):
        StepCacheSettings.published("flux")  # type: ignore[arg-type]
