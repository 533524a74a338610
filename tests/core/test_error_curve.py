"""Error curves: a few exact rows tell what each head of a call loses at every density."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.method.policy import TAILS, Policy, TailName
from draftattention.draftattn_core.method.tail.gain import LOG_GAINS, WORTH, fit_gain
from draftattention.draftattn_core.run.error_curve import CURVE_DENSITIES, ErrorCurves, error_curves
from draftattention.draftattn_core.run.probe import sample_rows
from draftattention.draftattn_core.run.row_blocks import RowBlocks
from tests.core.cases import make_request, small_layout, smooth_qkv

LAYOUT = small_layout((4, 7, 9), 3, 4)
DENSITIES = (0.08, 0.13, 0.2, 0.32, 0.5, 0.75)
ALL = 10**6


def a_call(batch: int = 1, heads: int = 3, sharpness: float = 2.0, bias: bool = False) -> AttendRequest:
    q, k, v = smooth_qkv(LAYOUT, batch=batch, heads=heads)
    key_bias = torch.linspace(-2, 2, batch * 7).view(batch, 7).double() if bias else None
    if key_bias is not None:
        key_bias[0, 2] = -torch.inf
    return make_request(sharpness * q, k, v, LAYOUT, Policy(), key_bias)


def video(x: Tensor) -> Tensor:
    """Rows of video tokens."""
    return x[:, :, LAYOUT.extra_before : LAYOUT.extra_before + LAYOUT.grid.tokens]


def brute_force(call: AttendRequest, policy: Policy, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(H,) squared error of one row and share of video pairs kept, from whole calls by the reference.

    `rows`: host tokens to look at, all of the video if None.
    """
    sparse = make_request(call.q, call.k, call.v, LAYOUT, policy, call.key_bias)
    difference = attend_reference(sparse) - attend_reference(dense(call))
    looked_at = video(difference) if rows is None else difference[:, :, rows]
    tables = call.tables
    kept = sparse.keep[:, :, : tables.q.video, : tables.k.video].double()
    pairs = tables.q.counts[: tables.q.video].double()[:, None] * tables.k.counts[: tables.k.video].double()
    return looked_at.square().sum(-1).mean((0, 2)), (kept * pairs).sum((2, 3)).mean(0) / pairs.sum()


def dense(call: AttendRequest) -> AttendRequest:
    return replace(call, keep=torch.ones_like(call.keep), tail=None)


@pytest.mark.parametrize("tail", ["none", "mean", "linear0", "linear1", "linear2"])
@pytest.mark.parametrize("rule", ["head", "row", "draft"])
def test_with_every_row_the_curve_is_the_full_error_of_the_real_selection(tail: TailName, rule: str) -> None:
    call = a_call(batch=2, bias=True)
    policy = Policy(method=rule, tail=tail, floor=0.3)  # type: ignore[arg-type]
    curves = error_curves(call, policy, [tail], densities=DENSITIES, rows=ALL, gains=False)
    assert curves.names() == (tail,) * 3 and not curves.gains.any()
    for point, density in enumerate(DENSITIES):
        squared, kept = brute_force(call, policy.with_density(density))
        torch.testing.assert_close(curves.squared[:, point], squared, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(curves.kept[:, point].double(), kept, rtol=1e-5, atol=0)
    exact = video(attend_reference(dense(call)))
    torch.testing.assert_close(curves.norms, exact.square().sum(-1).mean((0, 2)), rtol=1e-9, atol=0)
    torch.testing.assert_close(curves.relative[0], (curves.squared[0] / curves.norms[0]).sqrt())


def test_sampled_rows_are_those_rows_of_the_reference() -> None:
    call = a_call(batch=2)
    rows = call.tables.perm[sample_rows(LAYOUT.grid.tokens, 20, 5)]
    curves = error_curves(call, Policy(), ["linear1"], densities=DENSITIES, rows=20, seed=5, gains=False)
    for point, density in enumerate(DENSITIES):
        squared, _ = brute_force(call, Policy(density=density), rows)
        torch.testing.assert_close(curves.squared[:, point], squared, rtol=1e-9, atol=0)


def test_each_half_of_the_rows_is_judged_with_the_gain_of_the_other_half() -> None:
    call = a_call(batch=2, sharpness=4.0)
    rows = call.tables.perm[sample_rows(LAYOUT.grid.tokens, 30, 1)]
    curves = error_curves(call, Policy(), ["linear1"], densities=(0.13, 0.5), rows=30, seed=1)
    exact = attend_reference(dense(call))[:, :, rows]
    halves = (slice(0, None, 2), slice(1, None, 2))
    for point, density in enumerate(curves.densities):
        # By gain, (B, H, rows): squared errors of whole calls.
        squares = {}
        for gain in LOG_GAINS:
            sparse = make_request(call.q, call.k, call.v, LAYOUT, Policy(density=density, tail_gain=gain))
            squares[gain] = (attend_reference(sparse)[:, :, rows] - exact).square().sum(-1)
        for head in range(3):
            expected = 0.0
            for seen, unseen in (halves, halves[::-1]):
                gain = best_gain(squares, exact, head, seen)
                expected += float(squares[gain][:, head, unseen].sum()) / (2 * 30)
            assert float(curves.squared[head, point]) == pytest.approx(expected, rel=1e-6)
            assert float(curves.gains[head, point]) == best_gain(squares, exact, head, slice(None))
    assert curves.gains.any()


def best_gain(squares: dict[float, Tensor], exact: Tensor, head: int, rows: slice) -> float:
    """The log gain with the least relative error (mean over the batch), 0 if none is better by `WORTH`."""
    norms = exact[:, head, rows].square().sum((1, 2))
    errors = {gain: float((each[:, head, rows].sum(1) / norms).sqrt().mean()) for gain, each in squares.items()}
    best = min(errors, key=lambda gain: errors[gain])
    return best if errors[best] < (1 - WORTH) * errors[0.0] else 0.0


def test_the_judged_error_is_that_of_rows_never_seen() -> None:
    """A fit judged on its own rows flatters the curve; judged crosswise it meets the error of all other rows."""
    judged, flattered = [], []
    call = a_call(sharpness=4.0)
    for seed in range(30):
        curves = error_curves(call, Policy(), ["mean"], densities=(0.1, 0.5), rows=8, seed=seed)
        rows = RowBlocks.of(call, sample_rows(LAYOUT.grid.tokens, 8, seed))
        exact, tails = rows.exact(), replace(Policy(density=0.1), tail="mean")
        sparse = make_request(call.q, call.k, call.v, LAYOUT, tails)
        split = rows.split(sparse.keep[:, :, rows.q_block], sparse.tail)
        gain, _ = fit_gain(split, exact)
        own = (split.output(gain) - exact).square().sum(-1).mean((0, 2))
        others, _ = brute_force(call, replace(tails, tail_gain=tuple(gain.tolist())))
        judged.append(curves.squared[:, 0] / others)
        flattered.append(own / others)
    assert torch.stack(flattered).mean() < 0.93
    assert 0.95 < torch.stack(judged).mean() < 1.15


def test_a_sample_is_an_unbiased_estimate_of_the_full_curve() -> None:
    layout = small_layout((6, 9, 11))
    q, k, v = smooth_qkv(layout, heads=3)
    call = make_request(2 * q, k, v, layout, Policy())
    full = error_curves(call, Policy(), ["linear1"], densities=DENSITIES, rows=ALL)
    seeds = range(20)
    samples = [error_curves(call, Policy(), ["linear1"], densities=DENSITIES, seed=seed) for seed in seeds]
    ratios = torch.stack([sample.squared for sample in samples]) / full.squared
    spread = ratios.std(0) / len(seeds) ** 0.5
    assert ((ratios.mean(0) - 1).abs() < 3 * spread + 0.05).all()
    # One sample of 64 rows is within a fifth of the relative error at most points.
    assert ((ratios.sqrt() - 1).abs() < 0.2).double().mean() > 0.9


def test_density_1_has_no_error_and_more_density_seldom_more() -> None:
    call = a_call()
    curves = error_curves(call, Policy(), ["linear1"], densities=(*CURVE_DENSITIES, 1.0), rows=ALL)
    assert len(CURVE_DENSITIES) >= 6
    assert curves.squared[:, -1].max() < 1e-24
    assert (curves.squared.diff(dim=1) <= 0.02 * curves.squared[:, :1]).all()


def test_a_head_takes_the_cheapest_tail_that_is_nearly_best_over_the_whole_curve() -> None:
    layout = small_layout((4, 7, 9))
    q, k, v = smooth_qkv(layout, heads=3, noise=0.05)
    # Smooth video; keys that share nothing inside a block; logits spread far wider than a Taylor expansion can follow.
    k[:, 1:] += torch.tensor([1.0, 30.0]).view(2, 1, 1) * torch.randn(2, layout.tokens, 16, dtype=k.dtype)
    call = make_request(q, k, v, layout, Policy())
    every = error_curves(call, Policy(), TAILS, densities=DENSITIES)
    single = {name: error_curves(call, Policy(), [name], densities=DENSITIES) for name in TAILS}
    names = every.names()
    assert names[0].startswith("linear") and len(set(names)) > 1
    scores = {name: curves.squared.log().mean(1) / 2 for name, curves in single.items()}
    for head, name in enumerate(names):
        best = TAILS[0]
        for other in TAILS[1:]:
            if scores[other][head].exp() < 0.9 * scores[best][head].exp():
                best = other
        assert name == best
        for field in ("squared", "gains", "kept"):
            found, alone = getattr(every, field)[head], getattr(single[name], field)[head]
            # Ranks found while looking for two are not digit for digit those found while looking for one.
            torch.testing.assert_close(found, alone, rtol=0.05 if name == "linear1" else 1e-9, atol=1e-9)


def test_forced_blocks_are_counted_as_kept() -> None:
    call = a_call()
    curves = error_curves(call, Policy(), ["mean"], densities=(0.001, 0.5))
    own = call.tables.own.double()
    pairs = call.tables.q.counts[: own.shape[0]].double()[:, None] * call.tables.k.counts[: own.shape[1]].double()
    assert curves.kept[:, 0].tolist() == pytest.approx([float((own * pairs).sum() / pairs.sum())] * 3, rel=1e-6)


def test_logits_far_beyond_the_range_of_float32_leave_the_curve_finite_and_right() -> None:
    q, k, v = smooth_qkv(LAYOUT, dtype=torch.float32)
    call = make_request(300 * q, k, v, LAYOUT, Policy())
    curves = error_curves(call, Policy(), ["none", "linear1"], densities=DENSITIES, rows=ALL, gains=False)
    assert curves.squared.isfinite().all()
    squared, _ = brute_force(
        make_request(300 * q.double(), k.double(), v.double(), LAYOUT, Policy()),
        Policy(density=DENSITIES[2], tail=curves.names()),
    )
    torch.testing.assert_close(curves.squared[:, 2].double(), squared, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_calls_are_measured_in_float32(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in smooth_qkv(LAYOUT))
    half = error_curves(make_request(q, k, v, LAYOUT, Policy()), Policy(), ["linear0"], densities=DENSITIES)
    wide = make_request(q.double(), k.double(), v.double(), LAYOUT, Policy())
    exact = error_curves(wide, Policy(), ["linear0"], densities=DENSITIES)
    assert half.squared.dtype == torch.float32
    torch.testing.assert_close(half.squared.double(), exact.squared, rtol=5e-3, atol=1e-7)


def test_heads_in_groups_are_measured_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    call = a_call(heads=5)
    whole = error_curves(call, Policy(), ["none", "linear0"], densities=DENSITIES)
    monkeypatch.setattr("draftattention.draftattn_core.run.error_curve._CHUNK_BYTES", 1)
    parts = error_curves(call, Policy(), ["none", "linear0"], densities=DENSITIES)
    for field in ("kept", "squared", "norms", "tails", "gains"):
        torch.testing.assert_close(getattr(parts, field), getattr(whole, field), rtol=1e-9, atol=0)


def test_what_cannot_be_measured_is_refused() -> None:
    call = a_call()
    for densities in ((), (0.2, 0.1), (0.1, 0.1), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="ascend within 0..1"):
            error_curves(call, Policy(), ["mean"], densities=densities)
    with pytest.raises(ValueError, match="top_p keeps a mass"):
        error_curves(call, Policy(method="top_p"), ["mean"])
    with pytest.raises(ValueError, match="at least two sampled rows"):
        error_curves(call, Policy(), ["mean"], rows=1)


def test_curves_come_to_the_cpu_for_the_solver() -> None:
    curves: ErrorCurves = error_curves(a_call(), Policy(), ["mean"]).cpu()
    assert all(x.dtype == torch.float64 for x in (curves.kept, curves.squared, curves.norms, curves.gains))
