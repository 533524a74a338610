"""The forecast: exact where the model is a line, by the measured error where it bends."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.run.evaluation import Denoised
from draftattention.draftattn_core.run.step_cache import Reason, RunStepCache, StepCacheSettings
from draftattention.draftattn_core.run.step_cache.settings import Quantity

from .step_cases import SHAPE, Host, Model, euler, levels, noise, outcomes, run, smooth_model

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


def forecasting(threshold: float = 0.1, first: int = 3, **changes: object) -> RunStepCache:
    return RunStepCache(StepCacheSettings("forecast", threshold, first, **changes))  # type: ignore[arg-type]


def line(quantity: Quantity) -> Model:
    """A model whose forecast quantity is a line in the noise level, whatever the latent does."""
    base, slope = noise(5), noise(6)
    return {
        "velocity": lambda x, s: base + slope * s,
        "difference": lambda x, s: x + base + slope * s,
        "x0": lambda x, s: (x - base - slope * s * s) / s,
    }[quantity]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_what_is_a_line_in_the_noise_level_is_forecast_exactly(quantity: Quantity) -> None:
    cache = forecasting(0.01, quantity=quantity)
    host, model = Host(cache, steps=12), line(quantity)
    for i, s in enumerate((0.9, 0.8, 0.7, 0.6, 0.45, 0.2)):
        # Fresh latents: as far from a smooth path as a sampler that adds noise can get.
        x = noise(20 + i)
        torch.testing.assert_close(host.ask(model, x, s), model(x, s), rtol=2e-5, atol=2e-5)
    assert outcomes(cache.decisions) == "CCCfff"
    assert cache.decisions[2].error == pytest.approx(0.0, abs=1e-5)


def test_only_a_forecast_of_x0_ignores_the_noise_that_a_sampler_adds() -> None:
    # A model that knows its video: v = (x - video) / s.
    video = noise(1)
    errors = {}
    for quantity in QUANTITIES:
        cache = forecasting(0.0, quantity=quantity)
        host = Host(cache, steps=12)
        for i, s in enumerate((0.9, 0.8, 0.7, 0.6)):
            host.ask(lambda x, s: (x - video) / s, (1 - s) * video + s * noise(20 + i), s)
        errors[quantity] = cache.decisions[-1].error or 0.0
    assert errors["x0"] < 1e-5
    assert errors["velocity"] > 0.5 and errors["difference"] > 0.3


def test_along_the_flow_x0_over_the_squared_noise_level_is_as_good_as_the_velocity_over_the_level() -> None:
    # d(x0) = -s dv along the flow: on fine steps the errors of both agree in their leading order.
    model, schedule = smooth_model(3), [0.8, 0.795, 0.79, 0.785]
    errors = {}
    for quantity in QUANTITIES:
        cache = forecasting(0.0, quantity=quantity)
        host = Host(cache, steps=12)
        x = noise(0)
        for s, following in zip(schedule, [*schedule[1:], 0.78]):
            # Ten small steps of the flow from one level to the next.
            v = host.ask(model, x, s)
            for j in range(10):
                at = s + (following - s) * j / 10
                v = model(x, at)
                x = x + (following - s) / 10 * v
        errors[quantity] = cache.decisions[-1].error or 0.0
    assert errors["x0"] == pytest.approx(errors["velocity"], rel=0.15)


def by_hand(cache: RunStepCache, model: Model, schedule: list[float]) -> None:
    """Replay a run of `difference` forecasts with plain arithmetic; fails where the cache does otherwise."""
    settings = cache.settings
    host = Host(cache, steps=len(schedule))
    x = noise(0)
    computed: list[tuple[float, Tensor]] = []
    error = distance = total = 0.0
    for i, s in enumerate(schedule[:-1]):
        is_last = i == len(schedule) - 2
        expected, forecast = math.inf, torch.empty(0)
        if computed:
            (s_c, d_c), (s_p, d_p) = computed[-1], computed[-2] if len(computed) > 1 else (math.inf, computed[-1][1])
            forecast = x + d_c + (d_c - d_p) * ((s - s_c) / (s_c - s_p))
            expected = total + error * (s_c - s) / distance if distance else math.inf
        got = host.ask(model, x, s, is_last)
        if i >= settings.first and not is_last and expected < settings.threshold:
            assert cache.decisions[-1].reason is Reason.BELOW
            assert cache.decisions[-1].estimate == pytest.approx(expected, rel=1e-4)
            torch.testing.assert_close(got, forecast, rtol=1e-5, atol=1e-5)
            total = expected
        else:
            assert str(cache.decisions[-1].outcome) == "computed"
            v = model(x, s)
            assert torch.equal(got, v)
            if computed:
                error, distance = float((forecast - v).norm() / v.norm()), computed[-1][0] - s
                assert cache.decisions[-1].error == pytest.approx(error, rel=1e-4)
            computed.append((s, v - x))
            total = 0.0
        x = x + (schedule[i + 1] - s) * got


@pytest.mark.parametrize(("threshold", "first", "steps"), [(0.0005, 3, 20), (0.2, 1, 25), (0.4, 2, 17)])
def test_the_threshold_bounds_the_measured_error_summed_over_skips_in_a_row(
    threshold: float, first: int, steps: int
) -> None:
    for seed in range(3):
        cache = forecasting(threshold, first, max_skips=None, max_reach=1e9)
        by_hand(cache, smooth_model(seed), levels(steps))
        assert "f" in outcomes(cache.decisions) and "C" in outcomes(cache.decisions)[first:-1]


def test_of_two_samples_or_of_video_and_audio_the_worse_error_counts() -> None:
    bent, straight = smooth_model(0), line("difference")

    def two_samples(x: Tensor, s: float) -> Tensor:
        return torch.cat([straight(x[:1], s), bent(x[1:], s)])

    def packed(x: Tensor, s: float) -> Tensor:
        video, audio = (part.reshape(SHAPE) for part in x.split([288, 288], dim=-1))
        return torch.cat([straight(video, s).reshape(1, 1, -1), bent(audio, s).reshape(1, 1, -1)], dim=-1)

    alone = forecasting(0.0)
    # The second sample's start, so that the bent part sees the same latents in every run.
    start = noise(0, (2, *SHAPE[1:]))
    euler(lambda x, s, _, last: Host(alone, steps=9).ask(bent, x, s, last), start[1:], levels(9))
    for model, x, streams in (
        (two_samples, start, ()),
        (packed, torch.cat([start[:1].reshape(1, 1, -1), start[1:].reshape(1, 1, -1)], dim=-1), (288, 288)),
    ):
        cache = forecasting(0.0)
        host = Host(cache, steps=9, streams=streams)
        euler(lambda x, s, _, last, host=host, model=model: host.ask(model, x, s, last), x, levels(9))  # type: ignore[misc]
        assert [d.error for d in cache.decisions[1:]] == pytest.approx([d.error for d in alone.decisions[1:]], rel=1e-3)


def test_with_one_computed_evaluation_the_forecast_is_of_order_0() -> None:
    cache = forecasting(10.0, 2)
    host, late = Host(cache, steps=20), smooth_model(1)
    for s in (0.9, 0.8, 0.7):
        host.ask(smooth_model(0), noise(1), s)
    joins = host.of("late", conditional=None)
    x_c = noise(2)
    v_c = joins.ask(late, x_c, 0.7)
    assert host.calls == [0.9, 0.8, 0.7], "the condition is forecast, the branch that joins is computed"
    x = noise(3)
    host.ask(smooth_model(0), noise(1), 0.6)
    torch.testing.assert_close(joins.ask(late, x, 0.6), x + v_c - x_c)


def test_a_noise_level_visited_twice_is_computed_twice_and_replaces_the_anchor() -> None:
    # Heun: predictor and corrector at one level.
    cache = forecasting(10.0, 4, quantity="velocity")
    host, model = Host(cache, steps=20), line("velocity")
    bent: Model = lambda x, s: model(x, s) + x  # noqa: E731
    host.ask(bent, noise(0), 0.9)
    host.ask(bent, noise(1), 0.8)
    host.ask(bent, noise(2), 0.8)
    host.ask(bent, noise(3), 0.7)
    twice = bent(noise(4), 0.7)
    assert torch.equal(host.ask(bent, noise(4), 0.7), twice)
    assert cache.decisions[-1].reason is Reason.SAME_LEVEL
    # Anchors: the second visits of 0.7 and 0.8.
    second = bent(noise(2), 0.8)
    torch.testing.assert_close(host.ask(bent, noise(5), 0.6), twice + (twice - second))


def test_an_estimate_at_a_level_visited_twice_keeps_the_error_measured_before() -> None:
    cache = forecasting(0.0)
    host, model = Host(cache, steps=20), smooth_model(0)
    x = noise(0)
    for s in (0.9, 0.8, 0.8, 0.7):
        host.ask(model, x, s)
    first = cache.decisions[1].error
    assert first is not None and cache.decisions[3].estimate == pytest.approx(first, rel=1e-5)


def test_the_reach_of_a_forecast_is_bounded() -> None:
    def last_reason(max_reach: float) -> Reason:
        cache = forecasting(10.0, 3, max_reach=max_reach)
        host = Host(cache, steps=20)
        for s in (0.9, 0.89, 0.88, 0.4):
            host.ask(smooth_model(0), noise(0), s)
        return cache.decisions[-1].reason

    assert last_reason(48.5) is Reason.BELOW
    assert last_reason(47.5) is Reason.REACH


def test_skips_in_a_row_are_bounded() -> None:
    cache = forecasting(10.0, 2, max_skips=2)
    run(Host(cache, steps=12), smooth_model(0), levels(12))
    assert outcomes(cache.decisions) == "CCffCffCffCC"
    assert cache.decisions[4].reason is Reason.IN_A_ROW


@pytest.mark.parametrize("named", ["eps", "v", "x0", "edm"])
def test_a_model_that_predicts_no_flow_is_decided_and_answered_as_the_flow_it_is(named: str) -> None:
    # The same model as a flow, and as a prediction of an exploding latent x = y (1 + sigma).
    flow, schedule = smooth_model(2), levels(20, 3.0)[1:]
    sigmas = [t / (1 - t) for t in schedule]

    def denoised_of(sigma: float) -> Denoised:
        # EPS, V_PREDICTION and X0 with sigma_data 1; "edm" stands for any other sum of x and the prediction.
        norm = 1 + sigma * sigma
        shares = {
            "eps": (1.0, -sigma),
            "v": (1 / norm, -sigma / math.sqrt(norm)),
            "x0": (0.0, 1.0),
            "edm": (1 / norm, sigma / math.sqrt(norm)),
        }[named]
        return Denoised(*(torch.full((1, 1, 1, 1, 1), share) for share in shares))

    def velocity(y: Tensor, t: float) -> Tensor:
        return flow(y, t)

    caches = [forecasting(0.15), forecasting(0.15), forecasting(0.15)]
    paths: list[list[Tensor]] = []
    for cache, how in zip(caches, ("flow", "told", "by name")):
        y, path = noise(0), []
        host = Host(cache, steps=20, prediction="flow" if how == "flow" else named)
        for i, (t, sigma) in enumerate(zip(schedule[:-1], sigmas)):
            host.progress = 1 - t
            if how == "flow":
                u = host.ask(velocity, y, t)
            elif how == "by name" and named == "edm":
                # Nobody says what that is: always computed.
                host.ask(lambda x, s: x, y, sigma)
                assert cache.decisions[-1].reason is Reason.PREDICTION
                continue
            else:
                shares = denoised_of(sigma)
                x = y * (1 + sigma)

                def model(x: Tensor, sigma: float, shares: Denoised = shares) -> Tensor:
                    y = x / (1 + sigma)
                    u = flow(y, sigma / (1 + sigma))
                    return shares.prediction(x, (x - sigma * u) / (1 + sigma))

                host.denoised = shares if how == "told" else None
                x0 = shares.denoised(x, host.ask(model, x, sigma))
                u = (x - (1 + sigma) * x0) / sigma
            y = y + (schedule[i + 1] - t) * u
            path.append(y)
        paths.append(path)
    assert "f" in outcomes(caches[0].decisions)
    for cache, path in zip(caches[1 : 2 if named == "edm" else 3], paths[1:]):
        assert outcomes(cache.decisions) == outcomes(caches[0].decisions)
        torch.testing.assert_close(path, paths[0], rtol=2e-3, atol=2e-3)


def test_a_forecast_comes_closer_than_the_same_skips_with_a_constant_difference() -> None:
    schedule, model = levels(20), smooth_model(0)
    exact = euler(lambda x, s, *_: model(x, s), noise(0), schedule)[-1]
    forecast, reuse = (
        forecasting(10.0, 3, max_skips=2),
        RunStepCache(StepCacheSettings("easycache", 1e9, 3, max_skips=2)),
    )
    off = [float((run(Host(cache, steps=20), model, schedule) - exact).norm()) for cache in (forecast, reuse)]
    assert (forecast.forecast, reuse.reused) == (11, 11)
    assert off[0] < off[1] / 4
