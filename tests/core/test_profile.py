"""Profiles: what was measured about a model, merged run by run and used by another."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.run.budgets import least_error, within_error
from draftattention.draftattn_core.run.error_curve import CURVE_DENSITIES, ErrorCurves, error_curves
from draftattention.draftattn_core.run.figures import bucket_of
from draftattention.draftattn_core.run.fingerprint import ProfileError, weights_identity
from draftattention.draftattn_core.run.profile import FEW_PROMPTS, prompt_key
from draftattention.draftattn_core.run.profile_recorder import ProfileRecorder
from tests.core.cases import make_request, small_layout, smooth_qkv
from tests.core.profiles import CONDITIONS, MEASURED, MODEL, a_profile, curves, recorder, same


def test_three_buckets_are_finer_at_the_noisy_end() -> None:
    edges = [(i / 3) ** 1.5 for i in (1, 2)]
    assert [bucket_of(p) for p in (0.0, edges[0] - 1e-3, edges[0], edges[1] - 1e-3, edges[1], 1.0)] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert edges[0] == pytest.approx(0.19245, abs=1e-5) and edges[1] == pytest.approx(0.54433, abs=1e-5)


def test_a_run_s_curves_lie_where_they_were_measured() -> None:
    taking, found = recorder(), curves()
    assert taking.wants("main", 0.3, 2)
    taking.add(found, expert="main", weights=MEASURED, progress=0.3, layer=2)
    assert not taking.wants("main", 0.35, 2) and taking.wants("main", 0.9, 2) and taking.wants("low", 0.3, 2)
    made = taking.profile(prompt=" a fox ", grid="9x24x40", steps=20)
    assert made is not None and (made.runs, made.grids, made.steps) == (1, {"9x24x40": 1}, {"20": 1})
    assert made.prompts == (prompt_key("a fox"),) and "fox" not in made.prompts[0]
    figures = made.experts["main"]
    assert figures.measured.sum() == 4 and figures.measured[1, 2].all()
    torch.testing.assert_close(figures.squared[1, 2].double(), found.squared, rtol=1e-6, atol=0)
    torch.testing.assert_close(figures.norms[1, 2].double(), found.norms, rtol=1e-6, atol=0)
    torch.testing.assert_close(figures.worst[1, 2].double(), found.relative, rtol=1e-3, atol=0)
    assert torch.equal(figures.gains[1, 2].double(), found.gains)
    assert made.complete("main").heads(1, 2, (0.2,) * 4)[0] == ("linear1",) * 4


def test_what_was_kept_beyond_the_density_asked_for_is_counted_where_it_belongs() -> None:
    """On small grids forced blocks make the lowest densities equal: their error is that of what was kept."""
    base = curves()
    kept = torch.tensor([0.06, 0.06, 0.09, 0.14, 0.21, 0.33, 0.51, 0.76]).double().expand(4, -1)
    taking = recorder()
    taking.add(replace(base, kept=kept), expert="main", weights="", progress=0.0, layer=0)
    made = taking.profile(prompt=None, grid="3x5x7", steps=4)
    assert made is not None
    found = made.experts["main"].squared[0, 0].double().numpy()
    for head in range(4):
        expected = np.exp(
            np.interp(np.log(CURVE_DENSITIES), np.log(kept[head].numpy()), np.log(base.squared[head].numpy()))
        )
        np.testing.assert_allclose(found[head], expected, rtol=1e-6)
        assert found[head, 0] == pytest.approx(float(base.squared[head, 0]))


def test_a_run_that_measured_nothing_and_heads_that_are_no_numbers_leave_nothing() -> None:
    taking = recorder()
    assert taking.profile(prompt="a", grid="1x1x1", steps=1) is None
    broken = curves()
    broken.squared[1, 3] = torch.nan
    broken.norms[2] = torch.inf
    taking.add(broken, expert="main", weights="", progress=0.0, layer=0)
    made = taking.profile(prompt="a", grid="1x1x1", steps=1)
    assert made is not None and made.experts["main"].measured[0, 0].tolist() == [True, False, False, True]


def test_a_recorder_counts_what_threads_bring_at_once() -> None:
    taking = recorder()

    def bring(layer: int) -> None:
        for seed in range(10):
            taking.add(curves(seed=seed), expert="main", weights="", progress=0.0, layer=layer)

    threads = [threading.Thread(target=bring, args=(layer,)) for layer in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = taking.profile(prompt="a", grid="1x1x1", steps=1)
    assert made is not None and (made.experts["main"].counts[0] == 10).all()
    mean = torch.stack([curves(seed=seed).squared for seed in range(10)]).mean(0)
    torch.testing.assert_close(made.experts["main"].squared[0, 1].double(), mean, rtol=1e-5, atol=0)


def test_curves_of_another_model_or_other_settings_are_refused() -> None:
    taking = recorder()
    for layer, first_head in ((3, 0), (-1, 0), (0, 1), (0, -1)):
        with pytest.raises(ProfileError, match="are none of wan"):
            taking.add(curves(), expert="main", weights="", progress=0.0, layer=layer, first_head=first_head)
    with pytest.raises(ProfileError, match="other densities"):
        fewer = replace(curves(), densities=CURVE_DENSITIES[1:])
        taking.add(fewer, expert="main", weights="", progress=0.0, layer=0)
    with pytest.raises(ProfileError, match="the tail mean is none"):
        taking.add(curves(tail=1), expert="main", weights="", progress=0.0, layer=0)


def test_merging_runs_gives_their_means_and_the_worst_in_any_order() -> None:
    runs = [a_profile(seed, f"prompt {seed}") for seed in range(5)]
    grown = runs[0]
    for run in runs[1:]:
        grown = grown.merged(run)
    assert (grown.runs, len(grown.prompts), grown.grids, grown.steps) == (5, 5, {"9x24x40": 5}, {"20": 5})
    figures = grown.experts["main"]
    assert (figures.counts == 5).all()
    for name in ("squared", "norms", "gains"):
        mean = torch.stack([getattr(run.experts["main"], name).double() for run in runs]).mean(0)
        torch.testing.assert_close(getattr(figures, name).double(), mean, rtol=1e-5, atol=5e-3 * (name == "gains"))
    worst = torch.stack([run.experts["main"].worst for run in runs]).amax(0)
    assert torch.equal(figures.worst, worst)
    assert same(runs[4].merged(runs[3]).merged(runs[2].merged(runs[0].merged(runs[1]))), grown, exact=False)


def test_a_prompt_seen_twice_counts_once_and_few_prompts_are_said() -> None:
    profile = a_profile(0, "a fox")
    assert profile.caveat == "made from 1 prompt"
    assert profile.made_from() == "made from 1 prompt, 1 run: 9x24x40 (1)"
    again = profile.merged(a_profile(1, "a fox"))
    assert again.caveat == "made from 1 prompt" and again.runs == 2
    for number in range(2, FEW_PROMPTS + 1):
        again = again.merged(a_profile(number, f"prompt {number}"))
        expected = f"made from {number} prompts" if number < FEW_PROMPTS else ""
        assert again.caveat == expected
    assert a_profile(prompt=None).caveat == "made from 0 prompts"
    assert profile.check(MODEL, CONDITIONS) == ("made from 1 prompt",) and again.check(MODEL, CONDITIONS) == ()


def test_figures_under_different_tails_are_not_mixed() -> None:
    one, other = a_profile(0, tail=3), a_profile(1, tail=0)
    for merged in (one.merged(other), other.merged(one)):
        # Equally often: the cheaper one.
        assert torch.equal(merged.experts["main"].squared, other.experts["main"].squared)
        assert not merged.experts["main"].tails.any() and (merged.experts["main"].counts == 1).all()
    often = one.merged(a_profile(2, tail=3))
    for merged in (often.merged(other), other.merged(often)):
        assert torch.equal(merged.experts["main"].squared, often.experts["main"].squared)
        assert (merged.experts["main"].counts == 2).all()


def test_experts_are_kept_apart() -> None:
    both = a_profile(0, expert="high").merged(a_profile(1, expert="low"))
    assert list(both.experts) == ["high", "low"]
    assert torch.equal(both.experts["low"].squared, a_profile(1).experts["main"].squared)
    with pytest.raises(ProfileError, match=r"nothing about the expert 'main' \(it has high, low\)"):
        both.complete("main")


def test_two_devices_with_half_of_the_heads_each_make_the_profile_of_one() -> None:
    whole, parts = recorder(), [recorder(), recorder()]
    for layer in range(3):
        found = curves(seed=layer)
        whole.add(found, expert="main", weights="", progress=0.0, layer=layer)
        for part, first_head in zip(parts, (0, 2)):
            some = slice(first_head, first_head + 2)
            tables = {name: getattr(found, name)[some] for name in ("kept", "squared", "norms", "tails", "gains")}
            held = ErrorCurves(found.densities, **tables)
            part.add(held, expert="main", weights="", progress=0.0, layer=layer, first_head=first_head)
    one, left, right = (each.profile(prompt="a", grid="1x2x3", steps=4) for each in (whole, *parts))
    assert one is not None and left is not None and right is not None
    assert same(left.merged(right, same_run=True), one)
    complete = one.complete("main")
    assert complete.heads(0, 1, (0.1, 0.2), first_head=2)[1] == complete.heads(0, 1, (0.3, 0.3, 0.1, 0.2))[1][2:]
    with pytest.raises(ProfileError, match="heads 3 to 4 were asked of a profile of 4"):
        complete.heads(0, 1, (0.1, 0.2), first_head=3)


def test_gains_are_read_between_densities() -> None:
    profile = a_profile()
    gains = profile.experts["main"].gains[2, 1].double()
    at = profile.complete("main").heads(2, 1, (0.001, CURVE_DENSITIES[3], (0.05 * 0.08) ** 0.5, 1.0))[1]
    middle = float(gains[2, 1:3].mean())
    assert at == pytest.approx((float(gains[0, 0]), float(gains[1, 3]), middle, float(gains[3, -1])))


def test_what_was_not_measured_is_filled_from_what_lies_nearest() -> None:
    taking = recorder()
    taking.add(curves(seed=1), expert="main", weights="", progress=0.0, layer=0)
    taking.add(curves(seed=2), expert="main", weights="", progress=0.9, layer=0)
    some = ErrorCurves(*(part[:2] if isinstance(part, Tensor) else part for part in vars(curves(seed=3)).values()))
    taking.add(some, expert="main", weights="", progress=0.3, layer=1)
    made = taking.profile(prompt="a", grid="1x2x3", steps=4)
    assert made is not None
    known = made.experts["main"]
    filled = known.filled()
    assert torch.equal(filled.squared[known.measured], known.squared[known.measured])
    # Of two buckets as near, the noisier; else the nearest.
    assert torch.equal(filled.squared[1, 0], known.squared[0, 0])
    for bucket in (0, 2):
        assert torch.equal(filled.squared[bucket, 1, :2], known.squared[1, 1, :2])
    # Heads of a layer that were never seen: the mean of its others; a layer never seen: the mean of all heads seen.
    torch.testing.assert_close(filled.squared[1, 1, 2], known.squared[1, 1, :2].mean(0))
    seen = torch.cat([filled.squared[2, 0], filled.squared[2, 1, :2]])
    torch.testing.assert_close(filled.squared[2, 2, 1], seen.mean(0))
    assert (filled.tails == 1).all() and (
        made.complete("main").table({"none": 0.0, "linear1": 0.1}).tail_work == 0.1
    ).all()


def test_a_promise_may_be_made_on_the_worst_call_instead_of_the_mean() -> None:
    grown = a_profile(0).merged(a_profile(1)).complete("main")
    work = {"none": 0.0, "linear1": 0.02}
    mean, worst = grown.table(work), grown.table(work, worst=True)
    calls = [a_profile(seed).experts["main"] for seed in (0, 1)]
    relative = torch.stack([(call.squared / call.norms.unsqueeze(-1)).sqrt() for call in calls]).amax(0)
    np.testing.assert_allclose(np.sqrt(worst.squared / worst.norms[..., None]), relative.numpy(), rtol=1e-3)
    assert within_error(worst, 0.4).mean_work > within_error(mean, 0.4).mean_work


def test_another_model_other_settings_and_other_weights_are_told() -> None:
    profile = a_profile()
    with pytest.raises(
        ProfileError, match=r"made on wan \(3 layers, 4 heads of 16\) and the model is wan \(3 layers, 8"
    ):
        profile.check(replace(MODEL, heads=8), CONDITIONS)
    with pytest.raises(ProfileError, match="measured with k_block 64, not 128, order tile, not raster: choose those"):
        profile.check(MODEL, replace(CONDITIONS, k_block=128, order="raster"))
    assert "measured in float, not int8" in profile.check(MODEL, replace(CONDITIONS, number_format="int8"))[1]
    assert profile.check_weights("main", MEASURED) == ()
    assert "a LoRA, a quantised copy or a fine-tune" in profile.check_weights("main", "other")[0]
    for other in (
        replace(profile, fingerprint=replace(MODEL, family="hunyuan")),
        replace(profile, conditions=replace(CONDITIONS, rule="row")),
        replace(profile, conditions=replace(CONDITIONS, number_format="int8")),
        replace(profile, experts={"main": replace(profile.experts["main"], weights="other")}),
    ):
        with pytest.raises(ProfileError):
            profile.merged(other)


def test_weights_are_known_by_their_values_whatever_their_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"block.{i}.w": torch.randn(24, 16, generator=generator) for i in range(40)}
    weights["block.0.bias"] = torch.randn(24)
    name = weights_identity(weights)
    assert len(name) == 16 and name == weights_identity(dict(reversed(weights.items())))
    assert name == weights_identity({key: value.bfloat16() for key, value in weights.items()})
    assert name != weights_identity({key: value * 1.02 for key, value in weights.items()})
    assert name != weights_identity({key: value for key, value in weights.items() if key != "block.7.w"})
    assert name != weights_identity({f"model.{key}": value for key, value in weights.items()})


def test_budgets_of_a_profile_serve_another_call_better_than_one_density_for_all() -> None:
    """The whole way: measure, record, solve, and attend with the answer on other inputs of the same heads."""
    layout = small_layout((4, 9, 11))
    sharpness = torch.tensor([0.3, 1.0, 2.0, 6.0]).double().view(1, 4, 1, 1)

    def a_call(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = smooth_qkv(layout, heads=4, seed=seed, noise=0.2)
        return sharpness * q, k, v

    model = replace(MODEL, layers=1)
    taking = ProfileRecorder(model, replace(CONDITIONS, tails=("mean",)), CURVE_DENSITIES)
    for seed in range(3):
        found = error_curves(make_request(*a_call(seed), layout, Policy()), Policy(), ["mean"], seed=seed)
        taking.add(found, expert="main", weights="", progress=0.0, layer=0)
    made = taking.profile(prompt=None, grid="4x9x11", steps=1)
    assert made is not None
    complete = made.complete("main")
    budgets = least_error(complete.table({"mean": 0.0}), 0.3, floor=0.1)
    densities = budgets.heads(0, 0)
    assert densities is not None and np.mean(densities) == pytest.approx(0.3)
    names, gains = complete.heads(0, 0, densities)
    q, k, v = a_call(7)
    exact = attend_reference(make_request(q, k, v, layout, Policy(density=1.0)))

    def error(policy: Policy) -> float:
        request = make_request(q, k, v, layout, policy)
        assert float(request.keep.double().mean()) == pytest.approx(0.3, abs=0.01)
        return float((attend_reference(request) - exact).square().sum())

    solved = error(Policy(density=densities, tail=names, tail_gain=gains))
    uniform = error(Policy(density=0.3, tail="mean", tail_gain=complete.heads(0, 0, (0.3,) * 4)[1]))
    assert solved < 0.8 * uniform


def test_a_profile_s_parts_must_belong_together() -> None:
    good = a_profile()
    figures = good.experts["main"]
    wrong: dict[str, dict[str, Any]] = {
        "wrong form": {"experts": {"main": replace(figures, squared=figures.squared[:2])}},
        "not all possible": {"experts": {"main": replace(figures, worst=-figures.worst)}},
        "plain name": {"experts": {"../x": figures}},
        "whole numbers": {"runs": 1.5},
        "ascend": {"densities": tuple(reversed(CURVE_DENSITIES))},
    }
    for message, changes in wrong.items():
        with pytest.raises(ProfileError, match=message):
            replace(good, **changes)
