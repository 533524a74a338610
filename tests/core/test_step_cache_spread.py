"""Spread: planned evaluations, forecasts between them, and what they missed made good at the next computed one."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.run.evaluation import Outcome, Uncorrected
from draftattention.draftattn_core.run.skips import reasons as reason_counts
from draftattention.draftattn_core.run.skips import uncorrected
from draftattention.draftattn_core.run.step_cache import Reason, RunStepCache, StepCacheSettings, nothing_to_gain
from draftattention.draftattn_core.run.step_cache.settings import Quantity
from draftattention.draftattn_core.run.step_cache.spread import planned_steps

from .step_cases import Host, Model, euler, levels, noise, outcomes, reasons, run, smooth_model, walk

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
SCHEDULE = levels(12)
# Steps 0, 4, 7 and 11 of 12.
SHARE = 1 / 3


def spread(share: float = SHARE, **changes: object) -> RunStepCache:
    return RunStepCache(StepCacheSettings("spread", share=share, **changes))  # type: ignore[arg-type]


def naive(model: Model, x: Tensor, schedule: list[float], computed: set[int], quantity: Quantity) -> Tensor:
    """An Euler run whose latent itself is put right at each computed step, in float64, step by step."""

    def known(x: Tensor, s: float) -> Tensor:
        v = model(x, s)
        return {"velocity": v, "difference": v - x, "x0": x - s * v}[quantity]

    def velocity(x: Tensor, s: float, q: Tensor) -> Tensor:
        return {"velocity": q, "difference": q + x, "x0": (x - q) / s}[quantity]

    def line(s: float, a: tuple[float, Tensor], b: tuple[float, Tensor]) -> Tensor:
        at, one, other = (level**2 if quantity == "x0" else level for level in (s, a[0], b[0]))
        return b[1] + (a[1] - b[1]) * (at - other) / (one - other)

    x = x.double()
    anchors: list[tuple[float, Tensor]] = []
    answered: list[tuple[float, float, Tensor, Tensor]] = []
    for step, (s, following) in enumerate(zip(schedule, schedule[1:])):
        if step in computed:
            q = known(x, s)
            off = sum(
                (
                    (after - level) * (velocity(then, level, line(level, (s, q), anchors[-1])) - given)
                    for level, after, then, given in answered
                ),
                torch.zeros_like(x),
            )
            anchors, answered = [*anchors, (s, q)], []
            x = x + off + (following - s) * velocity(x, s, q)
        else:
            q = anchors[-1][1] if len(anchors) == 1 else line(s, anchors[-1], anchors[-2])
            given = velocity(x, s, q)
            answered.append((s, following, x, given))
            x = x + (following - s) * given
    return x


def dense(model: Model, x: Tensor) -> Tensor:
    return euler(lambda x, s, *_: model(x, s), x, SCHEDULE)[-1]


def test_a_run_computes_its_first_steps_and_those_planned_behind_them() -> None:
    settings = StepCacheSettings("spread", first=3, share=0.5, max_forecast_error=math.inf)
    host = Host(RunStepCache(settings), steps=16, schedule=levels(16))
    run(host, smooth_model(0), levels(16))
    computed = [index for index, one in enumerate(outcomes(host.cache.decisions)) if one == "C"]
    assert computed == sorted(planned_steps(16, 0.5, 3)) and computed[:3] == [0, 1, 2] and len(computed) == 8


def test_a_run_computes_what_was_planned_and_forecasts_the_rest_from_the_second_step_on() -> None:
    host = Host(spread(), steps=12, schedule=SCHEDULE)
    run(host, smooth_model(0), SCHEDULE)
    assert outcomes(host.cache.decisions) == "CfffCffCfffC"
    assert host.calls == [SCHEDULE[step] for step in (0, 4, 7, 11)]
    assert set(reasons(host.cache)) == {Reason.PLANNED}
    assert [decision.corrected for decision in host.cache.decisions if decision.outcome == "computed"] == [
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("share", [0.1, 0.45, 0.6])
def test_the_sampler_ends_where_a_latent_put_right_at_each_computed_step_does(quantity: Quantity, share: float) -> None:
    model = smooth_model(3)
    host = Host(spread(share, quantity=quantity, max_reach=1e9), steps=12, schedule=SCHEDULE)
    found = run(host, model, SCHEDULE, seed=4)
    double = smooth_model(3)
    planned = {*host.cache.settings.planned_steps(12)}
    expected = naive(lambda x, s: double(x.float(), s).double(), noise(4), SCHEDULE, planned, quantity)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_velocity_that_is_a_line_in_the_noise_level_costs_nothing_even_before_it_can_be_forecast() -> None:
    base, slope = noise(5), noise(6)

    def model(x: Tensor, s: float) -> Tensor:
        return base + slope * s

    ends = {}
    for correct in (True, False):
        host = Host(spread(quantity="velocity", correct=correct), steps=12, schedule=SCHEDULE)
        ends[correct] = run(host, model, SCHEDULE)
    torch.testing.assert_close(ends[True], dense(model, noise(0)), rtol=1e-5, atol=1e-5)
    # The first three answers repeat the first output.
    assert float((ends[False] - ends[True]).abs().max()) > 1e-3


def test_correction_brings_bending_paths_closer_to_their_dense_runs() -> None:
    schedule, gains = levels(20), []
    for seed in range(10):
        model, error = smooth_model(seed), {}
        exact = euler(lambda x, s, *_: model(x, s), noise(seed), schedule)[-1]  # noqa: B023
        for correct in (True, False):
            host = Host(spread(0.3, correct=correct), steps=20, schedule=schedule)
            error[correct] = float((run(host, model, schedule, seed) - exact).norm())
        gains.append(error[False] / error[True])
    # The output behind a gap was asked for at the latent that the gap left, so it is no gain on every path.
    assert math.prod(gains) ** (1 / len(gains)) > 1.25
    assert sum(gain < 1 for gain in gains) <= 1


def test_a_sampler_that_takes_other_steps_is_given_the_models_own_outputs() -> None:
    model = smooth_model(1)
    host = Host(spread(), steps=12, schedule=SCHEDULE, euler=False)
    x = noise(0)
    for i, s in enumerate(SCHEDULE[:-1]):
        out = host.ask(model, x, s)
        if i in planned_steps(12, SHARE):
            assert torch.equal(out, model(x, s))
        x = x + (SCHEDULE[i + 1] - s) * out
    assert not any(decision.corrected for decision in host.cache.decisions)


def test_a_step_of_another_kind_among_the_skipped_ones_leaves_the_next_output_alone() -> None:
    model, cache = smooth_model(1), spread()
    plain = Host(cache, steps=12, schedule=SCHEDULE)
    other = plain.of("cond", conditional=0, euler=False)
    for i, s in enumerate(SCHEDULE[:8]):
        out = (other if i == 2 else plain).ask(model, noise(i), s)
        if i == 4:
            assert torch.equal(out, model(noise(4), s))
    assert [decision.corrected for decision in cache.decisions] == [False] * 7 + [True]


def test_an_evaluation_that_another_rank_computes_is_no_forecast_to_put_right() -> None:
    class Others:
        """Ranks of which one cannot skip step 3."""

        def __init__(self) -> None:
            self.asked = 0

        def all_skip(self, skips: bool) -> bool:
            self.asked += 1
            return skips and self.asked != 5

        def summed(self, values: Tensor) -> Tensor:
            return values

        def failed(self, error: Exception) -> None:
            raise error

    model, cache = smooth_model(2), spread()
    cache.together = Others()  # type: ignore[assignment]
    host = Host(cache, steps=12, schedule=SCHEDULE)
    found = run(host, model, SCHEDULE, seed=1)
    computed = {i for i, decision in enumerate(cache.decisions) if decision.outcome == "computed"}
    assert computed == {0, 4, 7, 11} | {i for i, d in enumerate(cache.decisions) if d.reason is Reason.RANK}
    assert len(computed) == 5
    expected = naive(lambda x, s: model(x.float(), s).double(), noise(1), SCHEDULE, computed, "difference")
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stacked", [True, False])
def test_every_branch_is_put_right_by_its_own_outputs(stacked: bool) -> None:
    cond, uncond = smooth_model(1), smooth_model(2)

    def both(x: Tensor, s: float) -> Tensor:
        return torch.cat([cond(x[:1], s), uncond(x[1:], s)])

    cache = spread()
    host = Host(cache, keys=("cond", "uncond"), steps=12, schedule=SCHEDULE)
    parts = [host.of("cond", conditional=0), host.of("uncond", conditional=None)]

    def guided(x: Tensor, s: float, *_: object) -> Tensor:
        if stacked:
            c, u = host.ask(both, torch.cat([x, x]), s).chunk(2)
        else:
            c, u = (part.ask(model, x, s) for part, model in zip(parts, (cond, uncond), strict=True))
        return u + 3.0 * (c - u)

    found = euler(guided, noise(2), SCHEDULE)[-1]

    def combined(x: Tensor, s: float) -> Tensor:
        c, u = cond(x.float(), s), uncond(x.float(), s)
        return (u + 3.0 * (c - u)).double()

    # Guidance is a sum of outputs, and so are forecast and correction of velocities less the one latent.
    expected = naive(combined, noise(2), SCHEDULE, {0, 4, 7, 11}, "difference")
    torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=2e-4)


def test_a_model_that_predicts_noise_is_put_right_as_the_flow_it_is() -> None:
    flow = smooth_model(4)

    def as_eps(x: Tensor, sigma: float) -> Tensor:
        """The noise that the flow's velocity holds: x0 = y - t v, eps = x0 + v."""
        t = sigma / (1 + sigma)
        y = x / (1 + sigma)
        return y + (1 - t) * flow(y, t)

    ts = [0.98 * s for s in SCHEDULE]
    sigmas = [t / (1 - t) for t in ts]
    host = Host(spread(), steps=12, schedule=sigmas, prediction="eps", progress=0.5)
    x = noise(0) * (1 + sigmas[0])
    for i, sigma in enumerate(sigmas[:-1]):
        x = x + (sigmas[i + 1] - sigma) * host.ask(as_eps, x, sigma)
    plain = Host(spread(), steps=12, schedule=ts)
    expected = euler(lambda x, s, _, is_last: plain.ask(flow, x, s, is_last), noise(0), ts)[-1]
    assert host.cache.decisions[4].corrected
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


def test_a_run_of_unknown_length_is_computed() -> None:
    host = Host(spread(), steps=None, schedule=SCHEDULE)
    run(host, smooth_model(0), SCHEDULE)
    assert set(reasons(host.cache)) == {Reason.LENGTH} and len(host.calls) == 12


def test_a_latent_asked_for_piece_by_piece_under_one_name_is_computed() -> None:
    """No history fits: the last piece is another part of the video."""
    host = Host(spread(), steps=12, schedule=SCHEDULE)
    for i, s in enumerate(SCHEDULE[:-1]):
        for piece in range(3):
            host.ask(smooth_model(0), noise(10 * piece + i), s)
    assert len(host.calls) == 36 and not any(decision.corrected for decision in host.cache.decisions)
    assert set(reasons(host.cache)[1:]) == {Reason.SAME_LEVEL}


def test_a_sampler_that_asks_twice_at_a_level_as_heun_does_is_planned_as_any_other() -> None:
    host = Host(spread(max_forecast_error=math.inf), steps=12, schedule=SCHEDULE, euler=False)
    for i, s in enumerate(SCHEDULE[:-1]):
        for _ in range(1 + (i > 0)):
            host.ask(smooth_model(0), noise(i), s)
    assert outcomes(host.cache.decisions) == "CffffffCCffffCCffffffCC"


@pytest.mark.parametrize("begins", [2, 3, 6])
def test_a_condition_asked_for_twice_from_the_middle_on_is_no_heun_and_is_computed_from_there(begins: int) -> None:
    """As guidance asks that looks at another latent, or tiles that begin late: the second is no newer history."""
    for euler_steps, known in ((True, 0), (False, 0 if begins > 2 else 1)):
        host = Host(spread(), steps=12, schedule=SCHEDULE, euler=euler_steps)
        for i, s in enumerate(SCHEDULE[:-1]):
            for piece in range(2 if i >= begins else 1):
                host.ask(smooth_model(0), noise(10 * piece + i), s)
        late = [decision for decision in host.cache.decisions if decision.level <= SCHEDULE[begins]]
        assert {decision.outcome.value for decision in late[1 + 2 * known :]} == {"computed"}, euler_steps
        assert Reason.SAME_LEVEL in {decision.reason for decision in late}


def test_samplers_that_go_back_up_are_not_taken_for_tiles() -> None:
    up = [*SCHEDULE[:6], *SCHEDULE[2:-1]]
    # Heun, restarted: once where it begins, and twice at every other level.
    heun = [level for i, level in enumerate(up) for _ in range(1 if i in (0, 6) else 2)]
    for at in (up, heun):
        host = Host(spread(), steps=12, schedule=SCHEDULE, euler=False)
        walk(host, smooth_model(0), at)
        assert Reason.SAME_LEVEL not in reasons(host.cache), at


def test_a_schedule_that_holds_a_level_twice_cannot_be_told_from_tiles_and_costs_its_skips() -> None:
    host = Host(spread(), steps=12, schedule=SCHEDULE, euler=False)
    walk(host, smooth_model(0), [*SCHEDULE[:6], SCHEDULE[5], *SCHEDULE[6:-1]])
    assert outcomes(host.cache.decisions)[6:] == "C" * 7


def test_a_window_that_heun_first_meets_in_the_middle_is_planned_as_the_others() -> None:
    host = Host(spread(), steps=12, schedule=SCHEDULE, euler=False, window="a")
    other = host.of("cond", conditional=0, window="b")
    for i, s in enumerate(SCHEDULE[:-1]):
        for visit in range(1 + (i > 0)):
            for part in (host, other) if i > 3 else (host,):
                part.ask(smooth_model(0), noise(10 * visit + i), s)
    assert any(decision.window == "b" and decision.outcome == "forecast" for decision in host.cache.decisions)


def test_outside_its_windows_everything_is_computed() -> None:
    host = Host(spread(windows=((0.0, 0.4),)), steps=12, schedule=SCHEDULE)
    run(host, smooth_model(0), SCHEDULE)
    late = [decision for decision in host.cache.decisions if decision.progress > 0.41]
    assert {decision.outcome.value for decision in late} == {"computed"}
    assert Reason.WINDOW in {decision.reason for decision in late}


def test_a_second_expert_begins_with_a_history_of_its_own() -> None:
    cache = spread(max_forecast_error=math.inf)
    high = Host(cache, steps=12, schedule=SCHEDULE, expert="high")
    low = high.of("cond", conditional=0, expert="low")
    for i, s in enumerate(SCHEDULE[:-1]):
        (high if i < 5 else low).ask(smooth_model(0), noise(i), s)
    assert outcomes(cache.decisions) == "CfffCCfCfffC"
    assert cache.decisions[5].reason is Reason.HISTORY and not cache.decisions[5].corrected


def test_few_steps_and_a_share_that_computes_all_have_nothing_to_gain() -> None:
    settings = StepCacheSettings("spread", share=0.5)
    assert [nothing_to_gain(settings, steps) is None for steps in (1, 2, 4, 5, 20)] == [False] * 3 + [True] * 2
    assert nothing_to_gain(StepCacheSettings("spread", share=1.0), 20) is not None


@pytest.mark.parametrize("why", [Uncorrected.NOISE, Uncorrected.STEPS])
def test_under_samplers_that_add_noise_the_video_is_forecast_and_not_the_noise(why: Uncorrected) -> None:
    """x0 a line in the squared noise level: exact where x0 is forecast, far off where the fresh noise is."""
    base, slope = noise(5), noise(6)
    cache = spread(max_forecast_error=math.inf)
    host = Host(cache, steps=12, schedule=SCHEDULE, euler=False, uncorrected=why)
    off = []
    for i, s in enumerate(SCHEDULE[:-1]):
        x0 = base + slope * s * s
        x = (1 - s) * x0 + s * noise(50 + i)
        exact = (x - x0) / s
        found = host.ask(lambda *_: exact, x, s)  # noqa: B023
        if i > 4:
            off.append(float((found - exact).norm() / exact.norm()))
    assert max(off) < 1e-4 if why is Uncorrected.NOISE else max(off) > 0.1


def test_a_plan_gives_way_where_its_forecasts_are_measured_to_err_and_takes_over_when_they_no_longer_do() -> None:
    """The model jumps about between steps 3 and 12 of 24 and is smooth again after."""
    schedule, calm_model = levels(24), smooth_model(0)
    wild = {schedule[step]: noise(70 + step) for step in range(3, 13)}

    def model(x: Tensor, s: float) -> Tensor:
        return calm_model(x, s) + 3.0 * wild.get(s, torch.zeros(()))

    ends = {}
    for most in (0.25, math.inf):
        host = Host(spread(0.5, max_forecast_error=most), steps=24, schedule=schedule)
        found = run(host, model, schedule)
        exact = euler(lambda x, s, *_: model(x, s), noise(0), schedule)[-1]
        ends[most] = float((found - exact).norm() / exact.norm())
        extra = [made.index for made in host.cache.decisions if made.reason is Reason.ERRS]
        if most == math.inf:
            assert not extra
            continue
        assert extra and min(extra) > 3 and max(extra) < 16, extra
        for made in host.cache.decisions:
            # A correction follows, so twice as much may be missed.
            assert made.estimate is None or (made.estimate > 2 * most) == (made.reason is Reason.ERRS)
        assert reason_counts(host.cache.decisions)["forecasts err too much"] == len(extra)
    assert ends[0.25] < 0.5 * ends[math.inf], ends


def test_a_step_computed_for_its_error_beside_the_plan_is_computed_at_both_its_visits() -> None:
    """A forecast for the level that was just computed has no way to go, which is no reason to trust it."""
    host = Host(spread(0.5, max_forecast_error=0.05), steps=12, schedule=SCHEDULE, euler=False)
    for i, s in enumerate(SCHEDULE[:-1]):
        for visit in range(1 if i == 0 else 2):
            host.ask(smooth_model(0), noise(2 * i + visit), s)
    errs = [made for made in host.cache.decisions if made.reason is Reason.ERRS]
    assert len({made.level for made in errs}) > 3
    assert all(a.level == b.level for a, b in zip(errs[::2], errs[1::2], strict=True))
    # The second by what was measured at the first.
    assert all(b.estimate == pytest.approx(a.error) for a, b in zip(errs[::2], errs[1::2], strict=True))
    assert "f" in outcomes(host.cache.decisions), "the plan stands before anything is measured"


def test_a_planned_forecast_that_would_reach_too_far_is_computed() -> None:
    # Steps 0 and 4 are computed, 0.01 apart; the next one lies 48 times as far from the second.
    schedule = [0.9, 0.8975, 0.895, 0.8925, 0.89, 0.41, *(0.4 - 0.05 * i for i in range(6)), 0.0]

    def after(max_reach: float) -> tuple[Outcome, Reason]:
        host = Host(spread(max_reach=max_reach, max_forecast_error=math.inf), steps=12, schedule=schedule)
        walk(host, smooth_model(0), schedule[:6])
        assert outcomes(host.cache.decisions)[:5] == "CfffC"
        return host.cache.decisions[-1].outcome, host.cache.decisions[-1].reason

    assert after(48.5) == (Outcome.FORECAST, Reason.PLANNED)
    assert after(47.5) == (Outcome.COMPUTED, Reason.REACH)


def test_forecasts_that_no_correction_follows_may_err_by_half_as_much() -> None:
    for more in ({"euler": False}, {"euler": True, "correct": False}):
        host = Host(
            spread(0.5, max_forecast_error=0.2, correct=more.get("correct", True)),
            steps=12,
            schedule=SCHEDULE,
            euler=more["euler"],
        )
        for i, s in enumerate(SCHEDULE[:-1]):
            host.ask(smooth_model(0), noise(0) + 0.05 * i * noise(i), s)
        told = [made for made in host.cache.decisions if made.estimate is not None]
        assert any(0.2 < made.estimate < 0.4 for made in told)
        assert all((made.estimate > 0.2) == (made.reason is Reason.ERRS) for made in told)


def test_an_error_that_is_no_number_is_no_small_one() -> None:
    host = Host(spread(0.5), steps=12, schedule=SCHEDULE)
    for i, s in enumerate(SCHEDULE[:6]):
        host.ask(lambda x, _: torch.full_like(x, math.nan), noise(i), s)
    assert outcomes(host.cache.decisions) == "CfCCCC"


@pytest.mark.parametrize("steps", [8, 20, 50])
@pytest.mark.parametrize("share", [0.2, 0.25, 0.3, 0.4, 0.5])
def test_smooth_paths_under_euler_are_computed_as_planned_at_every_share_of_the_frontier(
    share: float, steps: int
) -> None:
    schedule = levels(steps)
    for seed in range(6):
        found = []
        for most in (StepCacheSettings().max_forecast_error, math.inf):
            host = Host(spread(share, max_forecast_error=most), steps=steps, schedule=schedule)
            found.append((run(host, smooth_model(seed), schedule, seed), host.cache.decisions))
        assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
        assert {made.reason for made in found[0][1]} == {Reason.PLANNED}


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_a_bound_that_is_no_error_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="max_forecast_error"):
        StepCacheSettings("spread", max_forecast_error=bound)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        StepCacheSettings("spread", share=share)


def test_a_step_cache_may_not_change_what_it_was_given() -> None:
    """The model's output stays as it is: a host may hold it elsewhere."""
    host = Host(spread(), steps=12, schedule=SCHEDULE)
    made: list[tuple[Tensor, Tensor]] = []

    def model(x: Tensor, s: float) -> Tensor:
        out = smooth_model(0)(x, s)
        made.append((out, out.clone()))
        return out

    run(host, model, SCHEDULE)
    assert len(made) == 4 and all(torch.equal(out, copy) for out, copy in made)


@pytest.mark.parametrize("why", list(Uncorrected))
def test_where_forecasts_are_left_as_they_were_the_decision_says_why(why: Uncorrected) -> None:
    host = Host(spread(), steps=12, schedule=SCHEDULE, euler=False, uncorrected=why)
    run(host, smooth_model(0), SCHEDULE)
    computed = {i: d for i, d in enumerate(host.cache.decisions) if d.outcome is Outcome.COMPUTED}
    assert {i: d.uncorrected for i, d in computed.items()} == {0: None, 4: why, 7: why, 11: why}
    assert uncorrected(host.cache.decisions) == {str(why): 3}


def test_nothing_was_left_uncorrected_where_all_was_corrected_or_nobody_wanted_it() -> None:
    for wanted in (True, False):
        host = Host(spread(correct=wanted), steps=12, schedule=SCHEDULE, euler=wanted)
        run(host, smooth_model(0), SCHEDULE)
        assert uncorrected(host.cache.decisions) == {} and host.cache.forecast == 8
