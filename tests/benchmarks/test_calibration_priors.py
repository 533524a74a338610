"""Needs are what public tables hold, and budgets from needs are worth what needs say of errors, no more."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.calibration.needs import Array, mass_need, rank_correlation
from benchmarks.calibration.plan import CalibrationRun, Priors, scenarios
from benchmarks.calibration.prior_report import beats, correlations, prior_json, prior_rows, prior_section
from benchmarks.calibration.prior_runs import _evidence, _judge, evidence_unit, prior_of, prior_unit
from benchmarks.calibration.priors import (
    ABSOLUTE,
    CURVE,
    OWN,
    PRIORS,
    PROPORTION,
    Evidence,
    Prior,
    errors_at,
    in_proportion,
)
from benchmarks.calibration.public_needs import alikeness
from benchmarks.calibration.tables import Figure, Row
from benchmarks.quality.raw import Raw
from draftattention.draftattn_core import Policy
from draftattention.draftattn_core.method.selection import select_from_draft
from draftattention.draftattn_core.run.error_curve import CURVE_DENSITIES
from tests.benchmarks.test_calibration import GRID, evaluation
from tests.core.need_tables import synthetic_needs


def counted_need(q: torch.Tensor, k: torch.Tensor, scale: float, mass: float) -> float:
    shares = []
    for row in q.double():
        weights = [math.exp(float(row @ key) * scale) for key in k.double()]
        whole, held, count = sum(weights), 0.0, 0
        for weight in sorted(weights, reverse=True):
            if held >= mass * whole:
                break
            held, count = held + weight, count + 1
        shares.append(count / len(weights))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("mass", [0.5, 0.95])
def test_a_need_is_the_share_of_keys_that_holds_the_mass_counted_key_by_key(mass: float) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(3, 5, 7) * torch.tensor([0.3, 1.0, 4.0]).view(3, 1, 1), torch.randn(3, 37, 7)
    found = mass_need(q, k, 0.5, mass).tolist()
    assert found == pytest.approx([counted_need(a, b, 0.5, mass) for a, b in zip(q, k, strict=True)], abs=1e-12)
    assert found[0] > found[1] > found[2]


def test_even_weights_need_nearly_all_keys_and_one_strong_key_is_enough() -> None:
    q = torch.ones(1, 1)
    assert float(mass_need(q, torch.zeros(21, 1), 1.0)) == pytest.approx(20 / 21)
    assert float(mass_need(q, torch.tensor([[0.0]] * 9 + [[50.0]]), 1.0)) == pytest.approx(0.1)
    assert float(mass_need(q, torch.zeros(21, 1), 1.0, mass=1.0)) == 1.0


def counted_ranks(values: list[float]) -> list[float]:
    return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]


def test_a_rank_correlation_is_the_correlation_of_ranks_counted_pair_by_pair() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 6, 23).astype(float), rng.normal(size=23)
    expected = np.corrcoef(counted_ranks(a.tolist()), counted_ranks(b.tolist()))[0, 1]
    assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(b, np.exp(b)) == pytest.approx(1.0) and rank_correlation(b, -b) == pytest.approx(-1.0)
    assert math.isnan(rank_correlation(b, np.ones(23)))
    with pytest.raises(ValueError, match="one shape"):
        rank_correlation(b, b[:-1])


def test_densities_in_proportion_have_their_mean_and_stop_at_one() -> None:
    weights = np.array([[1.0, 2.0], [4.0, 100.0]])
    free, full = in_proportion(weights, 0.1), in_proportion(weights, 0.5)
    assert free == pytest.approx(weights * 0.4 / 107) and full.mean() == pytest.approx(0.5)
    assert full[1, 1] == 1.0 and full[1, 0] == pytest.approx(4 * full[0, 0])
    with pytest.raises(ValueError, match="mean"):
        in_proportion(weights, 0.0)


def falling(needs: Array, power: float = 1.5) -> Array:
    """Squared errors that fall with the density and grow, from head to head, with a power of the need."""
    return np.asarray(needs[..., None] ** power * (1 / np.array(CURVE_DENSITIES) - 1))


def made(needs: Array, squared: Array) -> Prior:
    return Prior(CURVE_DENSITIES, {0: [Evidence(needs, np.ones(needs.shape), squared)]})


def lost(prior: Prior, method: str, squared: Array, own: Array) -> float:
    given = prior.given(method, 0, 0.28, 0.03, own)
    assert given.mean() == pytest.approx(0.25, abs=2e-3)
    return float(errors_at(CURVE_DENSITIES, squared, given).sum())


def test_where_errors_follow_needs_every_budget_from_needs_beats_one_density_for_all() -> None:
    needs = synthetic_needs(steps=1, layers=5, heads=8)[0]
    squared = falling(needs)
    even = float(errors_at(CURVE_DENSITIES, squared, np.full(needs.shape, 0.25)).sum())
    prior = made(needs, squared)
    assert prior.power(0.25) > 0
    for method in PRIORS:
        if method != "measured norms alone":
            assert lost(prior, method, squared, needs) < 0.95 * even, method


def test_where_errors_go_against_needs_the_proportion_loses_and_what_is_fitted_turns_around() -> None:
    needs = synthetic_needs(steps=1, layers=5, heads=8)[0]
    squared = falling(needs, power=-1.5)
    even = float(errors_at(CURVE_DENSITIES, squared, np.full(needs.shape, 0.25)).sum())
    prior = made(needs, squared)
    assert lost(prior, PROPORTION, squared, needs) > 1.05 * even
    assert prior.power(0.25) < 0 and lost(prior, ABSOLUTE, squared, needs) < even


def test_needs_of_other_heads_are_worth_nothing() -> None:
    needs = synthetic_needs(steps=1, layers=5, heads=8)[0]
    squared = falling(needs)
    even = float(errors_at(CURVE_DENSITIES, squared, np.full(needs.shape, 0.25)).sum())
    shuffled = np.random.default_rng(0).permutation(needs.ravel()).reshape(needs.shape)
    assert lost(made(shuffled, falling(shuffled)), CURVE, squared, needs) > even


def test_models_are_alike_as_their_heads_are_ordered() -> None:
    needs = synthetic_needs(steps=3, layers=12, heads=16)
    assert alikeness(needs, 0.5 * needs)["heads"] == pytest.approx(1.0)
    mixed = np.random.default_rng(0).permuted(needs, axis=2)
    found = alikeness(needs, mixed)
    assert abs(found["within layers"]) < 0.3 and found["depth"] == pytest.approx(1.0)
    assert set(alikeness(needs, needs[:, :6])) == {"depth"}


def test_what_was_measured_of_a_prior_is_found_again_and_reported(tmp_path: Path) -> None:
    scenario = Priors("", GRID, 8, ((1, 2),), (0,), (CalibrationRun(GRID, 8, 3),), works=(0.5,), densities=(0.3,))
    raw = Raw(tmp_path / "units.jsonl", {"version": 1})
    raw.append({"unit": evidence_unit(scenario, 3, 2), **_evidence(evaluation(4)), "took": 1.0})
    prior = prior_of(scenario, raw.records())
    judged = evaluation(2)
    raw.append({"unit": prior_unit(scenario, 0, 2), **_judge(scenario, judged, evaluation(1), prior), "took": 1.0})
    rows = prior_rows(scenario, raw.records())
    assert [(row.method, row.budget) for row in rows] == [(method, 0.5) for method in PRIORS]
    for row in rows:
        assert row.mean("work") == pytest.approx(0.5, abs=0.15), row  # whole blocks of a small grid
    assert [row["held_out"] for row in prior_json(scenario, rows)] == [row.method not in OWN for row in rows]
    compared = correlations(scenario, raw.records())
    assert all(-1 <= value <= 1 for each in compared.values() for values in each for value in values)
    words = "\n".join(prior_section(scenario, rows, [], raw.records()))
    assert "| need, fitted power | - | 0 of 0 |" in words and "of 1 evaluations" in words
    assert "Not measured" in "\n".join(prior_section(scenario, [], [], []))
    # Without a tail nothing of this is mixed up with what was measured with one.
    dropped = replace(scenario, dropped=True)
    assert prior_rows(dropped, raw.records()) == []
    assert [row["method"] for row in prior_json(dropped, rows)] == [f"{row.method}, no tail" for row in rows]
    with pytest.raises(KeyError):
        prior_of(dropped, raw.records())


def test_the_errors_of_heads_add_up_to_the_score_of_their_layer_with_and_without_a_tail() -> None:
    layer = evaluation(1).layers[1]
    policy = Policy(density=(0.1, 0.2, 0.3, 0.4), tail_gain=(0.0, 0.5, 0.0, -0.2))
    ours, dropped = layer.head_errors(policy)
    assert float(ours.sum()) == pytest.approx(layer.score_policy(policy)[0], rel=1e-5)
    keep = select_from_draft(layer.draft, layer.tables, policy, layer.scale)
    bare = layer.score_kept(keep, replace(policy, tail="none", tail_gain=0.0))[0]
    assert float(dropped.sum()) == pytest.approx(bare, rel=1e-5) and bare > 1.5 * float(ours.sum())


def test_a_method_wins_an_evaluation_by_its_error_at_equal_work() -> None:
    uniform = [Row("uniform", w, "", {(0, 2): Figure(w, e, 0, 0)}) for w, e in ((0.1, 0.2), (0.4, 0.05))]
    for error, better in ((0.099, True), (0.101, False)):
        assert beats(Row("x", 0.2, "", {(0, 2): Figure(0.2, error, 0, 0)}), uniform) == [better]


def test_the_prior_is_made_of_other_runs_than_those_that_judge_it() -> None:
    found = [one for one in scenarios(quick=False) if isinstance(one, Priors)]
    assert [one.dropped for one in found] == [False, True]
    for scenario in found:
        assert not {run.seed for run in scenario.made_from} & set(scenario.seeds)
        assert scenario.settings.policy.has_tail is not scenario.dropped
