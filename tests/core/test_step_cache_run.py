"""The step cache in a run: branches, windows, experts, samplers that go back or add noise, and what goes wrong."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.run.step_cache import Decision, Reason, RunStepCache, StepCacheSettings
from draftattention.draftattn_core.run.step_cache.cache import IDLE, MAX_ERRORS

from .step_cases import SHAPE, Host, Model, euler, levels, noise, outcomes, run, smooth_model

LATENT = math.prod(SHAPE) * 4
EASY = StepCacheSettings("easycache", 1e9, 2, max_skips=None)
FORECAST = StepCacheSettings("forecast", 1e9, 2, max_skips=None, max_reach=1e9)
BOTH = pytest.mark.parametrize("settings", [EASY, FORECAST], ids=["easycache", "forecast"])


def never(x: Tensor, s: float) -> Tensor:
    raise AssertionError("the model was called")


def walk(host: Host, model: Model, at: list[float]) -> None:
    for i, s in enumerate(at):
        host.ask(model, noise(30 + i), s)


def reasons(cache: RunStepCache) -> list[Reason]:
    return [decision.reason for decision in cache.decisions]


@BOTH
def test_a_window_of_progress_bounds_the_skips_and_there_may_be_two(settings: StepCacheSettings) -> None:
    windows = ((0.2, 0.4), (0.6, 0.8))
    cache = RunStepCache(StepCacheSettings(settings.rule, 1e9, 0, max_skips=None, max_reach=1e9, windows=windows))
    host = Host(cache, steps=20)
    for i in range(20):
        # As hosts find it, off by the rounding of a float32 noise level.
        host.progress = i / 20 - 3e-6
        host.ask(smooth_model(0), noise(i), 1 - i / 20)
    skipped = [i for i, decision in enumerate(cache.decisions) if decision.reason is Reason.BELOW]
    assert skipped == [4, 5, 6, 7, 8, 12, 13, 14, 15, 16]
    assert reasons(cache)[10] is Reason.WINDOW


def test_the_first_evaluations_count_by_number_by_share_of_the_steps_or_by_progress() -> None:
    def first_skip(steps: int | None, **first: float) -> int:
        settings = StepCacheSettings("forecast", 1e9, max_skips=None, max_reach=1e9, **first)  # type: ignore[arg-type]
        cache = RunStepCache(settings)
        host = Host(cache, steps=steps)
        for i in range(20):
            host.progress = i / 20
            host.ask(smooth_model(0), noise(i), 1 - i / 20)
        return outcomes(cache.decisions).index("f")

    assert first_skip(20, first=7) == first_skip(None, first=7) == 7
    assert first_skip(20, first_share=0.2) == first_skip(None, first_share=0.2) == 4
    assert first_skip(40, first_share=0.2) == 8


@BOTH
def test_the_condition_decides_for_all_whichever_branch_comes_first(settings: StepCacheSettings) -> None:
    def decided(order: tuple[str, ...]) -> tuple[list[float | None], dict[Hashable, Tensor]]:
        settings_ = StepCacheSettings(settings.rule, 0.25, 3, max_skips=2)
        cache = RunStepCache(settings_)
        host = Host(cache, steps=20)
        models = {"cond": smooth_model(0), "uncond": smooth_model(1)}
        asked = {key: host.of(key, conditional=0 if key == "cond" else None) for key in order}
        found: dict[Hashable, Tensor] = {}

        def guided(x: Tensor, s: float, _step: int, is_last: bool) -> Tensor:
            found.update({key: asked[key].ask(models[str(key)], x, s, is_last) for key in order})
            return 2 * found["cond"] - found["uncond"]

        euler(guided, noise(0), levels(20))
        assert len(cache.decisions) == 20, "one decision per evaluation, however many calls it takes"
        assert {(d.branches_computed, d.branches_skipped) for d in cache.decisions} == {(2, 0), (0, 2)}
        return [decision.estimate for decision in cache.decisions], found

    one, other = decided(("cond", "uncond")), decided(("uncond", "cond"))
    assert one[0] == other[0] and any(estimate is not None for estimate in one[0])
    assert all(torch.equal(one[1][key], other[1][key]) for key in one[1])


@BOTH
def test_a_branch_without_history_is_computed_and_no_other(settings: StepCacheSettings) -> None:
    cache = RunStepCache(settings)
    host = Host(cache, steps=20)
    walk(host, smooth_model(0), [0.9, 0.8, 0.7])
    assert reasons(cache)[-1] is Reason.BELOW
    late = host.of("late", conditional=None)
    expected = smooth_model(1)(noise(32), 0.7)
    assert torch.equal(late.ask(smooth_model(1), noise(32), 0.7), expected)
    host.ask(never, noise(33), 0.6)
    late.ask(never, noise(33), 0.6)
    last = cache.decisions[2]
    assert (str(last.outcome), last.branches_computed, last.branches_skipped) in {
        ("reused", 1, 1),
        ("forecast", 1, 1),
    }


@BOTH
def test_a_stacked_call_is_computed_whole_if_one_of_its_branches_has_no_history(settings: StepCacheSettings) -> None:
    cache = RunStepCache(settings)
    host = Host(cache, steps=20)
    walk(host, smooth_model(0), [0.9, 0.8, 0.7])
    host.of("late", "cond", conditional=1).ask(smooth_model(0), noise(1, (2, *SHAPE[1:])), 0.6)
    last = cache.decisions[-1]
    assert last.reason is Reason.BRANCH and str(last.outcome) == "computed"
    assert (last.branches_computed, last.branches_skipped) == (2, 0)
    host.of("late", "cond", conditional=1).ask(never, noise(2, (2, *SHAPE[1:])), 0.5)


@BOTH
def test_one_condition_under_two_sets_of_patches_is_two_branches_of_one_evaluation(
    settings: StepCacheSettings,
) -> None:
    # Guidance that skips layers asks for the condition twice at a noise level.
    cache = RunStepCache(settings)
    host = Host(cache, keys=(("cond", "plain"),), steps=20)
    skipping = host.of(("cond", "layers skipped"), conditional=None)
    plain, patched = smooth_model(0), smooth_model(1)
    for i, s in enumerate((0.9, 0.8, 0.7)):
        a, b = host.ask(plain, noise(i), s), skipping.ask(patched, noise(i), s)
    assert outcomes(cache.decisions)[:2] == "CC" and cache.decisions[2].branches_skipped == 2
    assert (a - plain(noise(2), 0.7)).norm() < (a - patched(noise(2), 0.7)).norm()
    assert (b - patched(noise(2), 0.7)).norm() < (b - plain(noise(2), 0.7)).norm()


@BOTH
def test_a_condition_that_takes_over_is_computed_and_decides_from_then_on(settings: StepCacheSettings) -> None:
    cache = RunStepCache(settings)
    host = Host(cache, steps=20)
    walk(host, smooth_model(0), [0.9, 0.8, 0.7])
    after = host.of("next condition", conditional=0)
    walk(after, smooth_model(1), [0.6, 0.5])
    assert host.calls == [0.9, 0.8, 0.6, 0.5]
    after.ask(never, noise(1), 0.4)
    # Of the condition that left nothing is held.
    assert cache.held_bytes <= 3 * LATENT


@BOTH
@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_a_latent_of_another_form_is_computed_and_begins_a_history(settings: StepCacheSettings, change: str) -> None:
    cache = RunStepCache(settings)
    host, model = Host(cache, steps=20), smooth_model(0)
    walk(host, model, [0.9, 0.8, 0.7])

    def other(seed: int) -> Tensor:
        return noise(seed, (1, 4, 3, 4, 5)) if change == "shape" else noise(seed).half().double()

    double: Model = lambda x, s: model(x.float(), s).to(x.dtype)  # noqa: E731
    host.ask(double, other(0), 0.6)
    assert reasons(cache)[-1] is Reason.LATENT
    host.ask(double, other(1), 0.5)
    assert host.calls == [0.9, 0.8, 0.6, 0.5]
    answered = host.ask(never, other(2), 0.4)
    assert (answered.shape, answered.dtype) == (other(2).shape, other(2).dtype)


@BOTH
def test_context_windows_have_histories_of_their_own_even_of_different_lengths(settings: StepCacheSettings) -> None:
    cache = RunStepCache(settings)
    host = Host(cache, steps=20)
    left, right = (host.of("cond", conditional=0, window=name) for name in ("left", "right"))
    long = (1, 4, 4, 4, 6)
    for i, s in enumerate((0.9, 0.8)):
        left.ask(smooth_model(0), noise(i), s)
        right.ask(smooth_model(1), noise(i, long), s)
    x, y = noise(5), noise(6, long)
    a, b = left.ask(never, x, 0.7), right.ask(never, y, 0.7)
    # Each is what the window alone would have had.
    for key, model, shape, z, got in (("left", smooth_model(0), SHAPE, x, a), ("right", smooth_model(1), long, y, b)):
        alone = Host(RunStepCache(settings), steps=20, window=key)
        for i, s in enumerate((0.9, 0.8)):
            alone.ask(model, noise(i, shape), s)
        assert torch.equal(alone.ask(never, z, 0.7), got)
    assert [(d.index, d.window) for d in cache.decisions] == [(i, w) for i in range(3) for w in ("left", "right")]


@BOTH
def test_windows_that_wander_are_computed_and_do_not_pile_up(settings: StepCacheSettings) -> None:
    cache = RunStepCache(settings)
    host = Host(cache, steps=20)
    for i in range(16):
        host.of("cond", conditional=0, window=i).ask(smooth_model(0), noise(i), 1 - i / 20)
    assert outcomes(cache.decisions) == "C" * 16 and set(reasons(cache)[2:]) == {Reason.HISTORY}
    assert cache.held_bytes <= (IDLE + 1) * 2 * LATENT


@BOTH
def test_a_sampler_that_goes_back_to_more_noise_is_computed_from_there(settings: StepCacheSettings) -> None:
    cache = RunStepCache(settings)
    host, model = Host(cache, steps=20), smooth_model(0)
    walk(host, model, [0.9, 0.8, 0.7, 0.6])
    assert host.calls == [0.9, 0.8]
    walk(host, model, [0.85, 0.75, 0.65])
    assert host.calls == [0.9, 0.8, 0.85, 0.75]
    assert reasons(cache)[4:] == [Reason.LEVEL_UP, Reason.HISTORY, Reason.BELOW]


@pytest.mark.parametrize("rule", ["easycache", "forecast"])
def test_heun_and_substeps_between_noise_levels_run_through_and_skip(rule: str) -> None:
    def heun(ask: Callable[[Tensor, float, bool], Tensor], schedule: list[float]) -> Tensor:
        x = noise(0)
        for i, (s, following) in enumerate(zip(schedule, schedule[1:])):
            is_last = i == len(schedule) - 2
            v = ask(x, s, is_last)
            if following > 0:
                v = (v + ask(x + (following - s) * v, following, is_last)) / 2
            x = x + (following - s) * v
        return x

    model, schedule = smooth_model(0), levels(20)
    exact = heun(lambda x, s, _: model(x, s), schedule)
    cache = RunStepCache(StepCacheSettings(rule, 0.05, 3))  # type: ignore[arg-type]
    host = Host(cache, steps=20)
    got = heun(lambda x, s, is_last: host.ask(model, x, s, is_last), schedule)
    assert len(cache.decisions) == 39 and cache.computed < 39
    assert float((got - exact).norm() / exact.norm()) < 0.05
    assert cache.errors == 0


def test_under_fresh_noise_the_measured_error_says_no() -> None:
    # Ancestral steps: a part of the noise is drawn anew each time. The threshold is one at which the path without
    # fresh noise skips every evaluation that may be.
    model, schedule = smooth_model(0), levels(20)
    skipped = {}
    for fresh in (0.0, 0.5):
        cache = RunStepCache(StepCacheSettings("forecast", 0.1, 3))
        host = Host(cache, steps=20)

        def guided(x: Tensor, s: float, step: int, is_last: bool, host: Host = host, fresh: float = fresh) -> Tensor:
            return host.ask(model, x + fresh * noise(60 + step), s, is_last)

        euler(guided, noise(0), schedule)
        skipped[fresh] = cache.forecast
    assert skipped[0.0] >= 10 and skipped[0.5] == 0


@pytest.mark.parametrize("rule", ["easycache", "forecast"])
def test_what_is_held_is_three_latents_where_easycache_decides_and_two_elsewhere(rule: str) -> None:
    cache = RunStepCache(StepCacheSettings(rule, 0.2, 3))  # type: ignore[arg-type]
    host = Host(cache, keys=("uncond", "cond"), conditional=1, steps=30)
    held = []
    model: Model = lambda x, s: smooth_model(0)(x, s)  # noqa: E731

    def guided(x: Tensor, s: float, _step: int, is_last: bool) -> Tensor:
        w, v = host.ask(model, torch.cat([x, x]), s, is_last).chunk(2)
        held.append(cache.held_bytes)
        return 2 * v - w

    euler(guided, noise(0), levels(30))
    assert cache.computed < 30
    assert max(held) == (5 if rule == "easycache" else 4) * LATENT
    cache.clear()
    assert cache.held_bytes == 0 and len(cache.decisions) == 30


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


@BOTH
def test_a_latent_that_is_not_finite_never_leads_to_a_skip(settings: StepCacheSettings) -> None:
    cache = RunStepCache(settings)
    host = Host(cache, steps=20)
    for i, s in enumerate((0.9, 0.8, 0.7, 0.6)):
        host.ask(lambda x, s: x * math.nan, noise(i), s)
    assert outcomes(cache.decisions) == "CCCC" and cache.errors == 0


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
