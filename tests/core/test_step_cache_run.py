"""The step cache in a run: branches, windows, samplers that go back or add noise, and the memory it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.run.evaluation import Uncorrected
from draftattention.draftattn_core.run.step_cache import Reason, RunStepCache, StepCacheSettings
from draftattention.draftattn_core.run.step_cache.visits import IDLE

from .step_cases import (
    BOTH,
    SHAPE,
    Host,
    Model,
    euler,
    levels,
    never,
    noise,
    outcomes,
    reasons,
    smooth_model,
    walk,
)

LATENT = math.prod(SHAPE) * 4


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


def test_the_first_evaluations_count_by_number_or_by_share_of_the_steps() -> None:
    def first_skip(steps: int, **first: float) -> int:
        settings = StepCacheSettings("forecast", 1e9, max_skips=None, max_reach=1e9, **first)  # type: ignore[arg-type]
        cache = RunStepCache(settings)
        host = Host(cache, steps=steps, schedule=[1 - i / 20 for i in range(21)])
        for i in range(20):
            host.ask(smooth_model(0), noise(i), 1 - i / 20)
        return outcomes(cache.decisions).index("f")

    assert first_skip(20, first=7) == first_skip(40, first=7) == 7
    assert first_skip(20, first_share=0.2) == 4 and first_skip(40, first_share=0.2) == 8


@BOTH
@pytest.mark.parametrize("begins", [0, 8])
def test_a_share_of_the_run_is_one_of_its_steps_where_the_sampler_asks_twice_a_step(
    settings: StepCacheSettings, begins: int
) -> None:
    """Heun: at the end of a step, and again where the next one begins. From the middle of a schedule (video to video)
    the steps count from where the run begins."""
    skip = replace(settings, first_share=0.2)
    cache = RunStepCache(skip)
    schedule = [1 - i / 20 for i in range(21)]
    host = Host(cache, steps=20, schedule=schedule, euler=False, uncorrected=Uncorrected.STEPS)
    seed = 0
    for s in schedule[begins : begins + 8]:
        for _ in range(1 if s == schedule[begins] else 2):
            host.ask(smooth_model(0), noise(seed), s)
            seed += 1
    computed = [made.level for made in cache.decisions if made.reason is Reason.FIRST]
    assert sorted(set(computed), reverse=True) == pytest.approx(schedule[begins : begins + 4]) and len(computed) == 7
    assert outcomes(cache.decisions)[:7] == "C" * 7 and cache.decisions[7].reason is not Reason.FIRST


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


@pytest.mark.parametrize("rounding", [2.0**-24, -(2.0**-24), 3e-6, -3e-6])
@pytest.mark.parametrize("rule", ["easycache", "forecast", "spread"])
def test_a_level_visited_again_but_for_rounding_is_the_same_level(rule: str, rounding: float) -> None:
    # Samplers find the levels between steps through logarithms: Heun in them visits 0.9599999 and then 0.96. The second
    # visit looks elsewhere, as under fresh noise.
    model, schedule = smooth_model(0), levels(20)

    def asked(off: float) -> tuple[RunStepCache, Tensor]:
        # A plan skips until it has seen a level twice: the steps at its start are not to be all of those.
        first = 1 if rule == "spread" else 3
        cache = RunStepCache(StepCacheSettings(rule, 2.0 if rule == "easycache" else 0.3, first))  # type: ignore[arg-type]
        host = Host(cache, steps=20, schedule=schedule, euler=False)
        x = noise(0)
        for i, s in enumerate(schedule[:-1]):
            for visit in range(1 if i == 0 else 2):
                latent = x + 0.5 * visit * noise(60 + i)
                evaluation = host.evaluation(latent, s, i == 19)
                if visit and i % 3 == 1:
                    evaluation = replace(evaluation, level=s * (1 + off))
                answer = cache.answer(latent, evaluation)
                v = model(latent, s) if answer is None else answer.prediction
                if answer is None:
                    cache.store(latent, v, evaluation)
            x = x + (schedule[i + 1] - s) * v
        return cache, x

    (plain, exact), (near, found) = asked(0.0), asked(rounding)
    assert outcomes(near.decisions) == outcomes(plain.decisions) and reasons(near) == reasons(plain)
    assert 0 < near.computed < 39
    for made, expected in zip(near.decisions, plain.decisions, strict=True):
        assert (made.error or 0.0) == pytest.approx(expected.error or 0.0, rel=1e-3)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


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
