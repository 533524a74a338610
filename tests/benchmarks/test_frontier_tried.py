"""Rows that were also tried: what they do differently, and that they leave the frontier's own rows alone."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from benchmarks.frontier.core_rules import CoreRule
from benchmarks.frontier.methods import Method, methods
from benchmarks.frontier.plan import scenarios
from benchmarks.frontier.rounds import unit
from benchmarks.frontier.tried import AGAINST, LeaningSchedule, Tried, tried, tried_scenario
from benchmarks.frontier.tried_runs import anchors, run_tried
from demo.checkpoint import new_model
from draftattention.draftattn_core import TokenGrid

GRID = TokenGrid(3, 8, 8)


def test_names_are_unique_and_every_family_has_one_to_stand_beside() -> None:
    scenario = tried_scenario()
    assert len({method.name for method in scenario.methods}) == len(scenario.methods)
    assert {method.family for method in tried(20)} == set(AGAINST)
    assert set(AGAINST.values()) <= {method.family for method in methods(20)}


def test_units_of_the_frontier_keep_their_keys() -> None:
    main, extra = scenarios(quick=False)[0], tried_scenario()
    for method in methods(20):
        key = unit(extra, GRID, 0, method)
        assert key == unit(main, GRID, 0, method)
        assert isinstance(key[5], dict) and set(key[5]) <= {field.name for field in fields(Method)}


def test_the_main_scenarios_are_chosen_without_it() -> None:
    assert not any("also tried" in scenario.name for scenario in scenarios(quick=False))
    assert "small" not in tried_scenario().name


def test_anchors_pay_for_both_outputs() -> None:
    dense, sparse = anchors(Tried("", steps=10, sparse="ours", warm=3, anchor_every=4))
    assert dense == {0, 1, 2, 6} and sparse == {2, 3, 4, 5, 6, 7, 8, 9}
    torch.manual_seed(0)
    method = Tried("", steps=6, sparse="ours", density=0.5, warm=1, anchor_every=3)
    made = run_tried(new_model(num_layers=1).eval(), method, GRID, seed=0)
    assert made.ledger.computed == 8 and made.ledger.answered == 0 and 2 < made.ledger.attention < 8


def test_the_last_step_alone_is_dense() -> None:
    schedule = Tried("", steps=20, sparse="ours", density=0.2, warm=1, last=1.0).settings().schedule
    found = [schedule.density(step / 20, 0, 1) for step in range(20)]
    assert found == [None, *[0.2] * 18, None]


def test_density_rises_where_the_forecast_leans() -> None:
    schedule = Tried("", steps=20, sparse="ours", density=0.2, warm=1, raised=0.5).settings().schedule
    assert isinstance(schedule, LeaningSchedule)
    assert schedule.density(0.5, 0, 1) == 0.2
    schedule.leaning.now = True
    assert schedule.density(0.5, 0, 1) == 0.5 and schedule.density(0.0, 0, 1) is None


@pytest.mark.parametrize(("lazy", "first"), [(False, 4), (True, 3)])
def test_core_adds_the_distance_from_the_last_computed_evaluation_anew(lazy: bool, first: int) -> None:
    """x falls by 1 at every evaluation and y = 10 + x: the rate is 1. EasyCache compares from the window's start on."""
    levels = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    rule = CoreRule(0.7, 0.85, 0.0, lazy=lazy)
    answered = []
    for index, level in enumerate(levels):
        x = torch.full((1, 1, 1, 8, 8), 10.0 - index)
        found = rule.answer(x, level)
        if found is None:
            rule.store(x, x + 10.0, level)
        else:
            answered.append(index)
            assert torch.equal(found, x + 10.0)
    # The size of y is about 18: the sum is 1, 3, 6, 10 and, at the fifth, 15 eighteenths, above the threshold.
    assert answered[0] == first and answered == list(range(first, min(first + 4, 8)))
