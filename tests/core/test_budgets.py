"""Budgets: densities by measured error. Small tables are solved by brute force beside the solver."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration.public_needs import read_needs
from draftattention.draftattn_core.run.budgets import Budgets, CurveTable, least_error, least_work, within_error
from draftattention.draftattn_core.run.convex_curve import Array, ConvexCurves, hull_slopes
from draftattention.draftattn_core.run.figures import bucket_of
from tests.core.need_tables import WAN_14B, statistics, synthetic_needs

DENSITIES = (0.03, 0.05, 0.08, 0.13, 0.2, 0.32, 0.5, 0.75)
X = np.array([*DENSITIES, 1.0])


def a_table(
    buckets: int = 2, layers: int = 3, heads: int = 4, seed: int = 0, noise: float = 0.1, tail_work: float = 0.03
) -> CurveTable:
    """Errors that fall like powers of the density, differently for every head, measured with noise."""
    rng = np.random.default_rng(seed)
    cells = (buckets, layers, heads, 1)
    size, power = rng.lognormal(-5, 1.5, cells), rng.uniform(0.3, 2.5, cells)
    x = np.array(DENSITIES)
    squared = size * x**-power * (1 - x) ** 2 * rng.lognormal(0, noise, (*cells[:3], len(x)))
    return CurveTable(DENSITIES, squared, rng.lognormal(0, 0.5, cells[:3]), np.full(cells[:3], tail_work))


def y_at(table: CurveTable, density: Array) -> Array:
    """Errors of the convex curves at densities (..., buckets, layers, heads)."""
    curves = ConvexCurves.through(X, np.concatenate([table.squared, np.zeros((*table.norms.shape, 1))], -1))
    return curves.y(curves.filled_to(density))


def test_the_hull_is_the_largest_convex_function_below_the_points() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        y = np.append(rng.lognormal(0, 1, len(DENSITIES)), 0.0)
        # A convex combination of any two points bounds the hull from above, and the hull is the least of them.
        naive = y.copy()
        for (i, j), k in itertools.product(itertools.combinations(range(len(X)), 2), range(len(X))):
            if i < k < j:
                naive[k] = min(naive[k], y[i] + (y[j] - y[i]) * (X[k] - X[i]) / (X[j] - X[i]))
        slopes = hull_slopes(X, y)
        np.testing.assert_allclose(y[0] + np.append(0, np.cumsum(slopes * np.diff(X))), naive, atol=1e-12)
        assert (np.diff(slopes) >= -1e-9).all()


def test_a_curve_touches_its_hull_is_convex_and_never_rises() -> None:
    rng = np.random.default_rng(1)
    y = np.append(rng.lognormal(0, 1, (200, len(DENSITIES))), np.zeros((200, 1)), axis=1)
    curves = ConvexCurves.through(X, y)
    hull = y[:, :1] + np.append(np.zeros((200, 1)), np.cumsum(hull_slopes(X, y) * np.diff(X), axis=1), axis=1)

    def at(x: float) -> Array:
        filled = curves.filled_to(np.full(200, x))
        np.testing.assert_allclose(curves.x(filled), x, atol=1e-12)
        return curves.y(filled)

    for point, x in enumerate(X):
        np.testing.assert_allclose(at(float(x)), np.minimum(hull[:, point], hull[:, 0]), atol=1e-12)
    fine = np.stack([at(x) for x in np.linspace(X[0], 1, 400)], -1)
    assert (np.diff(fine, n=2) >= -1e-12).all() and (np.diff(fine) <= 1e-12).all()
    np.testing.assert_allclose(fine[:, -1], 0, atol=1e-12)


@pytest.mark.parametrize("shape", [lambda x: 1 / x - 1, lambda x: x**-0.5 - 1, lambda x: (1 - x) ** 2])
def test_between_measured_densities_a_curve_follows_the_usual_shapes(shape: object) -> None:
    assert callable(shape)
    curves = ConvexCurves.through(X, shape(X))
    for x in np.linspace(0.05, 1, 100):
        found = float(curves.y(curves.filled_to(np.asarray(x))))
        assert found == pytest.approx(float(shape(x)), rel=0.05, abs=0.005 * float(shape(X[0])))


@pytest.mark.parametrize("noise", [0.0, 0.6])
@pytest.mark.parametrize("work", [0.12, 0.3, 0.7])
def test_no_other_densities_have_less_error_at_the_same_work(work: float, noise: float) -> None:
    table = a_table(1, 2, 2, seed=3, noise=noise)
    found = least_error(table, work)
    assert found.mean_work == pytest.approx(work, abs=1e-12)
    grid = np.array(list(itertools.product(np.linspace(0.03, 1, 22), repeat=4))).reshape(-1, 1, 2, 2)
    affordable = grid[(grid + 0.03).mean((1, 2, 3)) <= work]
    assert found.squared.sum() <= y_at(table, affordable).sum((1, 2, 3)).min() + 1e-12
    # And the error it says is the one its densities have.
    np.testing.assert_allclose(found.squared, y_at(table, found.density), rtol=1e-9, atol=1e-15)


def test_small_exchanges_between_two_heads_never_help() -> None:
    table = a_table()
    found = least_error(table, 0.25)
    cells = list(np.ndindex(found.density.shape))
    before = found.squared.sum()
    for a, b in itertools.permutations(cells, 2):
        moved = found.density.copy()
        step = min(0.01, 1 - moved[a], moved[b] - 0.03)
        moved[a] += step
        moved[b] -= step
        assert y_at(table, moved).sum() >= before - 1e-7


def test_on_the_measured_points_alone_the_solver_is_at_least_as_good_as_every_choice_of_them() -> None:
    """Without any curve between the points: an independent lower bound, also for curves that are not convex."""
    table = a_table(1, 1, 5, seed=4, noise=0.8, tail_work=0.0)
    whole = np.append(table.squared, np.zeros((1, 1, 5, 1)), axis=-1)[0, 0]
    choices = np.array(list(itertools.product(range(len(X)), repeat=5)))
    works, errors = X[choices].mean(1), whole[np.arange(5), choices].sum(1)
    for work in (0.1, 0.25, 0.5):
        assert least_error(table, work).squared.sum() <= errors[works <= work].min() + 1e-12
    for error in (0.02, 0.1):
        allowed = error**2 * table.norms.sum()
        assert least_work(table, error).mean_work <= works[errors <= allowed].min() + 1e-12


def test_the_work_is_spent_to_the_last_digit_and_more_work_never_lowers_a_density() -> None:
    table, shares = a_table(3, 5, 4), np.array([2.0, 3.0, 5.0])
    before = None
    for work in np.linspace(0.07, 0.97, 19):
        found = least_error(table, float(work), shares=shares)
        assert found.mean_work == pytest.approx(work, abs=1e-12)
        expected = (shares / 10) @ (found.density + 0.03 * ~found.dense[..., None]).mean((1, 2))
        assert expected == pytest.approx(work, abs=1e-12)
        if before is not None:
            assert (found.density >= before.density - 1e-9).all() and found.error() < before.error()
        before = found


def test_order_does_not_matter_and_equals_are_treated_equally() -> None:
    table = a_table(3, 4, 5)
    found = least_error(table, 0.25)
    rng = np.random.default_rng(0)
    places = np.ix_(*(rng.permutation(n) for n in found.density.shape))
    moved = CurveTable(DENSITIES, table.squared[places], table.norms[places], table.tail_work[places])
    for solve in (
        lambda t: least_error(t, 0.25),
        lambda t: least_work(t, 0.05),
        lambda t: within_error(t, 0.05),
    ):
        np.testing.assert_allclose(solve(moved).density, solve(table).density[places], atol=1e-9)
        assert np.array_equal(solve(table).density, solve(table).density)
    twins = replace(table, squared=np.broadcast_to(table.squared[:1, :1, :1], table.squared.shape).copy())
    same = least_error(twins, 0.25).density
    np.testing.assert_allclose(same, 0.25 - 0.03, atol=1e-12)


def test_straight_curves_that_are_worth_the_same_share_what_is_left() -> None:
    squared = np.broadcast_to(1.0 - np.array(DENSITIES), (1, 2, 3, len(DENSITIES))).copy()
    squared[0, 0] *= 2
    table = CurveTable(DENSITIES, squared, np.ones((1, 2, 3)), np.zeros((1, 2, 3)))
    found = least_error(table, 0.7)
    np.testing.assert_allclose(found.density[0], [[1.0] * 3, [0.4] * 3], atol=1e-9)
    assert found.dense.tolist() == [[True, False]]


def test_floors_are_kept_and_are_the_answer_where_they_cost_more_than_there_is() -> None:
    table = a_table()
    floor = np.full(table.norms.shape, 0.1)
    floor[1, 2, 3] = 0.9
    found = least_error(table, 0.2, floor=floor)
    assert (found.density >= floor - 1e-12).all() and found.mean_work == pytest.approx(0.2, abs=1e-12)
    assert found.density[1, 2, 3] == pytest.approx(0.9)
    poor = least_error(table, 0.01, floor=floor)
    np.testing.assert_allclose(poor.density, floor)
    assert least_error(table, 0.01).density.max() == pytest.approx(DENSITIES[0])
    assert (least_error(table, 0.2, floor=0.15).density >= 0.15 - 1e-12).all()


def test_least_work_is_the_inverse_of_least_error() -> None:
    table, shares = a_table(3, 5, 4), np.array([1.0, 2.0, 3.0])
    for work in (0.1, 0.3, 0.8):
        found = least_error(table, work, shares=shares)
        back = least_work(table, found.error(), shares=shares)
        assert back.mean_work == pytest.approx(work, abs=1e-9) and back.error() == pytest.approx(found.error())
        np.testing.assert_allclose(back.density, found.density, atol=1e-6)
    assert least_work(table, 1e6).mean_work == pytest.approx(0.06)
    whole = least_work(table, 0.0)
    assert whole.dense.all() and whole.mean_work == 1.0 and whole.error() == 0.0


def test_within_an_error_every_layer_keeps_the_promise_and_none_pays_more_than_it_must() -> None:
    table = a_table(3, 5, 4)
    found = within_error(table, 0.05)
    assert (found.layer_errors() <= 0.05 + 1e-9).all()
    dear = found.density.max(-1) > DENSITIES[0] + 1e-9
    np.testing.assert_allclose(found.layer_errors()[dear], 0.05, rtol=1e-6)
    # Each layer is a problem of its own, and its work the least for its error.
    for bucket, layer in np.ndindex(3, 5):
        part = (slice(bucket, bucket + 1), slice(layer, layer + 1))
        alone = CurveTable(DENSITIES, table.squared[part], table.norms[part], table.tail_work[part])
        np.testing.assert_allclose(least_work(alone, 0.05).density, found.density[part], atol=1e-6)
    assert within_error(table, 0.02).mean_work > found.mean_work


def test_work_beyond_the_promise_goes_where_it_helps_most() -> None:
    table = a_table(3, 5, 4)
    promised = within_error(table, 0.08)
    both = least_error(table, promised.mean_work + 0.1, floor=promised.density)
    assert both.mean_work == pytest.approx(promised.mean_work + 0.1, abs=1e-12)
    assert (both.layer_errors() <= 0.08 + 1e-9).all()
    alone = least_error(table, promised.mean_work + 0.1)
    assert (alone.layer_errors() > 0.08).any() and alone.squared.sum() <= both.squared.sum()


def test_a_sensitivity_weighs_layers_as_larger_errors_would() -> None:
    table = a_table(2, 3, 4)
    factor = np.array([[1.0, 4.0, 0.0], [2.0, 0.5, 1.0]])
    scaled = replace(table, squared=table.squared * factor[..., None, None])
    weighed, larger = least_error(table, 0.3, sensitivity=factor), least_error(scaled, 0.3)
    np.testing.assert_allclose(weighed.density, larger.density, atol=1e-6)
    np.testing.assert_allclose(weighed.squared * factor[..., None], larger.squared, atol=1e-12)
    np.testing.assert_allclose(weighed.density[0, 2], DENSITIES[0])
    by_layer = least_error(table, 0.3, sensitivity=factor[0])
    np.testing.assert_array_equal(by_layer.density, least_error(table, 0.3, sensitivity=factor[[0, 0]]).density)


def test_dense_layers_emerge_where_a_dense_call_costs_no_more() -> None:
    table = a_table(1, 4, 3, tail_work=0.05)
    table.squared[0, 1] *= 1e6
    found = least_error(table, 0.5)
    assert found.dense.tolist() == [[False, True, False, False]]
    assert found.heads(0, 1) is None
    # Dense, it has no tail to pay for and no error.
    assert (found.work[0, 1] == 1.0).all() and not found.squared[0, 1].any()
    assert found.mean_work == pytest.approx(0.5, abs=1e-12)


def test_a_head_whose_figures_are_no_numbers_is_computed_whole() -> None:
    table = a_table()
    table.squared[1, 0, 2, 3] = np.nan
    table.norms[0, 1, 1] = np.inf
    found = least_error(table, 0.4)
    assert found.density[1, 0, 2] == 1.0 and found.density[0, 1, 1] == 1.0
    assert np.isfinite(found.density).all() and np.isfinite(found.squared).all()
    assert found.mean_work == pytest.approx(0.4, abs=1e-12)


def test_a_device_with_some_of_the_heads_reads_the_same_budgets() -> None:
    found: Budgets = least_error(a_table(3, 4, 6), 0.3)
    whole = found.heads(1, 2)
    assert whole is not None and len(whole) == 6
    assert (found.heads(1, 2, 0, 2), found.heads(1, 2, 2, 4)) == (whole[:2], whole[2:])


def test_a_large_model_is_solved_at_once() -> None:
    table = a_table(3, 60, 40)
    started = time.process_time()
    found = least_error(table, 0.25)
    # About 40 ms of one core; the limit leaves room for a busy machine.
    assert time.process_time() - started < 2.0
    assert found.mean_work == pytest.approx(0.25, abs=1e-12) and found.density.shape == (3, 60, 40)


def test_what_is_no_table_and_no_wish_is_refused() -> None:
    table = a_table()
    with pytest.raises(ValueError, match=r"must be \(buckets, layers, heads, 8\)"):
        CurveTable(DENSITIES, table.squared[..., :5], table.norms, table.tail_work)
    with pytest.raises(ValueError, match="norms and tail work"):
        CurveTable(DENSITIES, table.squared, table.norms[:1], table.tail_work)
    with pytest.raises(ValueError, match="ascend between 0 and 1"):
        CurveTable(DENSITIES[::-1], table.squared, table.norms, table.tail_work)
    with pytest.raises(ValueError, match="negative"):
        CurveTable(DENSITIES, -table.squared, table.norms, table.tail_work)
    for work in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="mean work must be above 0"):
            least_error(table, work)
    for error in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="an error is relative"):
            within_error(table, error)
    with pytest.raises(ValueError, match="shares must be 2 numbers"):
        least_error(table, 0.3, shares=np.ones(3))
    with pytest.raises(ValueError, match="sensitivity is one finite number"):
        least_error(table, 0.3, sensitivity=np.ones(4))
    with pytest.raises(ValueError, match="floors are densities"):
        least_error(table, 0.3, floor=1.5)


def steps_of_buckets(steps: int) -> list[slice]:
    buckets = [bucket_of(step / steps) for step in range(steps)]
    return [slice(buckets.index(bucket), steps - buckets[::-1].index(bucket)) for bucket in range(3)]


def test_synthetic_needs_look_like_those_of_a_real_model() -> None:
    needs = synthetic_needs()
    assert needs.shape == (50, 40, 40) and 0 < needs.min() < needs.max() < 1
    found = statistics(needs, steps_of_buckets(50))
    for name, value in WAN_14B.items():
        tolerance = {"rel": 0.5, "abs": 0} if name.startswith("variance") else {"rel": 0.1, "abs": 0.02}
        assert found[name] == pytest.approx(value, **tolerance), name


@pytest.mark.skipif("DRAFTATTENTION_NEED_TABLES" not in os.environ, reason="no folder of public need tables is named")
def test_public_needs_have_the_statistics_the_synthetic_ones_are_made_to() -> None:
    path = Path(os.environ["DRAFTATTENTION_NEED_TABLES"]) / "sparsity_wan_14B_t2v.csv.gz"
    found = statistics(read_needs(path), steps_of_buckets(50))
    for name, value in WAN_14B.items():
        assert found[name] == pytest.approx(value, abs=0.002), name


def test_where_heads_need_as_differently_as_in_a_real_model_one_density_for_all_costs_half_as_much_again() -> None:
    """Errors as if missing mass fell exponentially, to 5 % at the need: a shape for tests, not a measurement."""
    needs = np.stack([synthetic_needs()[bucket].mean(0) for bucket in steps_of_buckets(50)])
    x = np.array(DENSITIES)
    squared = (np.exp(np.log(0.05) * x / needs[..., None]) - np.exp(np.log(0.05) / needs[..., None])) ** 2
    table = CurveTable(DENSITIES, np.maximum(squared, 0), np.ones(needs.shape), np.full(needs.shape, 0.03))
    solved = least_error(table, 0.25)
    uniform = np.linspace(0.1, 0.9, 81)
    errors = [y_at(table, np.full(needs.shape, density)).sum() for density in uniform]
    equal = float(np.interp(-solved.squared.sum(), -np.array(errors), uniform)) + 0.03
    assert equal > 1.5 * 0.25
