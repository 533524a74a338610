"""The bench of calibration: what it scores is what attention gives, and its verdicts are read off rows as they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.calibration import __main__ as command
from benchmarks.calibration.captured import known_cells, unit
from benchmarks.calibration.evaluation import Evaluation, LayerCall
from benchmarks.calibration.methods import ONLINE, ORACLE, PROFILE, UNIFORM
from benchmarks.calibration.plan import Captured, Priors, Whole, scenarios
from benchmarks.calibration.plot import on_all
from benchmarks.calibration.published import energies_of, published, score_masks, score_published, score_rettention
from benchmarks.calibration.savings import captured_savings, savings_section, times, whole_savings
from benchmarks.calibration.spend import figures_of, score_budgets, score_uniform
from benchmarks.calibration.tables import Figure, Row, WholeRow, captured_rows, error_at, whole_rows, work_at
from benchmarks.calibration.verdicts import equal_error, excess, gain_db, near_oracle
from benchmarks.calibration.whole import DENSE, methods
from benchmarks.calibration.whole import unit as whole_unit
from benchmarks.quality.capture import CapturedCall
from benchmarks.quality.raw import Raw
from draftattention.draftattn_core import Policy, Settings, TableCache, TokenGrid
from draftattention.draftattn_core.attention import attend
from tests.core.cases import smooth_qkv

GRID = TokenGrid(4, 12, 16)
CACHE = TableCache(16)
AT = [(0, 2), (0, 7)]


def evaluation(step: int) -> Evaluation:
    """Two layers of 4 heads on 768 tokens."""
    layers = []
    for layer in range(2):
        torch.manual_seed(10 * step + layer)
        q, k, v = smooth_qkv(Settings().layout(GRID), heads=4, dim=64, dtype=torch.float32)
        sharp = torch.logspace(-1, 0.5, 4).view(1, 4, 1, 1) * (1 + 2 * layer)
        layers.append(LayerCall(CapturedCall(q * sharp, k, v, GRID, 0, step, layer), Settings(), CACHE))
    return Evaluation(tuple(layers), step / 8)


def row(method: str, budget: float, work: float, error: float) -> Row:
    return Row(method, budget, "", {at: Figure(work, error, 2 * error, 3 * error) for at in AT})


def test_a_score_is_the_error_of_the_packs_own_attention_on_the_judged_rows() -> None:
    layer = evaluation(1).layers[0]
    policy = Policy(density=(0.1, 0.2, 0.3, 0.4), tail_gain=(0.0, 0.5, 0.0, -0.2))
    call, tables = layer.call, layer.tables
    found = attend(call.q, call.k, call.v, Settings().layout(GRID), policy)
    tokens = tables.perm[layer.positions]
    exact = F.scaled_dot_product_attention(call.q, call.k, call.v)[:, :, tokens]
    off = (found.out[:, :, tokens] - exact).square().sum(-1)
    squared, norm, worst, share, tail = layer.score_policy(policy)
    assert squared == pytest.approx(float(off.sum()) / len(tokens), rel=1e-3)
    assert norm == pytest.approx(float(exact.square().sum()) / len(tokens), rel=1e-4)
    assert share == pytest.approx(float(found.density()), rel=1e-4) and tail == pytest.approx(
        found.tail_work(), rel=1e-4
    )
    relative = (off / exact.square().sum(-1)).sqrt().flatten().sort(descending=True).values
    assert worst == pytest.approx(float(relative[: round(0.05 * relative.numel())].mean()), rel=1e-3)
    assert layer.score_output(found.out, share, tail)[0] == pytest.approx(squared, rel=1e-3)


def test_budgets_of_the_evaluation_itself_lose_less_than_one_density_for_all() -> None:
    judged = evaluation(1)
    figures = figures_of(judged, 256)
    spent = Figure.of(score_budgets(figures, judged, 0.45))
    # Whole blocks of a small grid: what budgets cost is not quite what was asked.
    even = Figure.of(score_uniform(figures, judged, spent.work))
    assert even.work >= spent.work - 0.02
    assert spent.rel_l2 < 0.95 * even.rel_l2


def test_every_published_method_answers_and_says_what_it_cost() -> None:
    judged, before = evaluation(2), evaluation(1)
    names = [one.name for one in published()]
    assert len(set(names)) == len(names) and {"SVG", "Radial", "AdaSpa", "the paper"} <= set(names)
    for one in published():
        found = Figure.of(score_published(one, judged, before, 0.5))
        assert 0.0 < found.work < 1.2 and math.isfinite(found.rel_l2), one.name
    assert Figure.of(score_rettention(judged, before, 0.7, 0)).work == pytest.approx(0.7, abs=0.2)


def test_masks_of_the_judged_calls_keep_the_mass_they_were_made_for() -> None:
    judged = evaluation(2)
    run = {(layer.call.step, layer.call.layer): energies_of(layer) for layer in judged.layers}
    few, many = (Figure.of(score_masks(judged, [run], floor, 8, repeats=False)) for floor in (0.3, 0.95))
    assert few.work < many.work <= 1.0 and many.rel_l2 < few.rel_l2


def test_curves_are_read_between_their_points_in_logarithms_and_not_beyond() -> None:
    rows = [row(UNIFORM, 0.1, 0.1, 0.2), row(UNIFORM, 0.4, 0.4, 0.05)]
    assert work_at(rows, 0.1, AT) == pytest.approx(0.2) and error_at(rows, 0.2, AT) == pytest.approx(0.1)
    assert work_at(rows, 0.04, AT) is None and error_at(rows, 0.5, AT) is None


def test_in_the_picture_a_row_of_easy_evaluations_stands_where_all_of_them_would_put_it() -> None:
    hard, easy = Figure(0.1, 0.4, 0.5, 0.5), Figure(0.1, 0.1, 0.2, 0.2)
    rows = [Row(UNIFORM, 0.1, "", dict(zip(AT, (hard, easy), strict=True))), Row("SVG", 0.1, "", {AT[1]: easy})]
    assert on_all(rows[0], rows) == pytest.approx(0.25) and on_all(rows[1], rows) == pytest.approx(0.25)
    assert on_all(rows[1], rows[1:]) == pytest.approx(0.1)


def test_the_verdict_at_equal_error_compares_works() -> None:
    uniform = [row(UNIFORM, 0.1, 0.1, 0.2), row(UNIFORM, 0.4, 0.4, 0.05)]
    found = equal_error([*uniform, row(ONLINE, 0.1, 0.1, 0.1)], ONLINE)
    assert found.met is True and "0.100: 2.00" in found.found
    found = equal_error([*uniform, row(ONLINE, 0.1, 0.16, 0.1)], ONLINE)
    assert found.met is False and "0.160: 1.25" in found.found
    assert equal_error([*uniform, row(ONLINE, 0.5, 0.3, 0.01)], ONLINE).met is False
    assert equal_error(uniform, ONLINE).met is None


def test_the_verdict_on_a_profile_compares_errors_at_equal_work() -> None:
    oracle = [row(ORACLE, 0.1, 0.1, 0.2), row(ORACLE, 0.4, 0.4, 0.05)]
    assert excess([*oracle, row(PROFILE, 0.2, 0.2, 0.104)], PROFILE) == {0.2: pytest.approx(0.04)}
    assert near_oracle([*oracle, row(PROFILE, 0.2, 0.2, 0.104)]).met is True
    assert near_oracle([*oracle, row(PROFILE, 0.2, 0.2, 0.107)]).met is False


def test_nobody_is_judged_on_a_seed_that_its_profile_was_made_from() -> None:
    for scenario in scenarios(quick=False):
        runs = scenario.made_from if isinstance(scenario, Priors) else scenario.calibration
        made = {run.seed for run in runs}
        assert made.isdisjoint(scenario.seeds), scenario.name


def test_the_quick_plan_is_a_part_of_the_whole_one() -> None:
    whole = {scenario.name: scenario for scenario in scenarios(quick=False)}
    for part in scenarios(quick=True):
        full = whole[part.name]
        assert set(part.seeds) <= set(full.seeds)
        if isinstance(part, Whole) and isinstance(full, Whole):
            assert set(part.means) <= set(full.means)
            part = replace(part, means=full.means)
        assert replace(part, seeds=full.seeds) == full


def test_a_gain_in_decibels_needs_four_seeds_at_the_real_size() -> None:
    def rows(seeds: int) -> list[WholeRow]:
        uniform, ours = ({seed: value + seed for seed in range(seeds)} for value in (30.0, 33.5))
        return [WholeRow(UNIFORM, 0.15, 0.4, uniform, uniform), WholeRow(ONLINE, 0.15, 0.4, ours, ours)]

    assert gain_db(rows(4), ONLINE, real=True).met is True and gain_db(rows(2), ONLINE, real=False).met is True
    assert gain_db(rows(3), ONLINE, real=True).met is None
    assert gain_db(rows(3), PROFILE, real=True).found == "not measured"


def test_what_a_profile_saves_is_the_work_of_one_density_for_all_at_its_quality() -> None:
    scenario = next(one for one in scenarios(quick=False) if isinstance(one, Whole))
    uniform = [
        WholeRow(UNIFORM, 0.15, 0.4, {0: 20.0, 1: 30.0, 2: 0.0}, {}),
        WholeRow(UNIFORM, 0.3, 0.6, {0: 30.0, 1: 40.0}, {}),
    ]
    (found,) = whole_savings(scenario, [*uniform, WholeRow(PROFILE, 0.15, 0.4, {0: 25.0, 1: 35.0, 2: 9.0}, {})])
    assert found.needed == pytest.approx(0.5) and found.judged_on == (0, 1) and found.made_on == (3, 4, 5, 7)
    assert "| 0.400 | 0.500 | 20% |" in savings_section([found])[-2]
    (found,) = whole_savings(scenario, [*uniform, WholeRow(PROFILE, 0.3, 0.6, {0: 41.0, 1: 41.0}, {})])
    assert found.needed is None and "| 0.600 | more than 0.600 | - |" in savings_section([found])[-2]
    captured = scenarios(quick=False)[0]
    assert isinstance(captured, Captured)
    rows = [row(UNIFORM, 0.1, 0.1, 0.2), row(UNIFORM, 0.4, 0.4, 0.05), row(PROFILE, 0.1, 0.1, 0.1)]
    (found,) = captured_savings(captured, rows)
    assert (found.work, found.needed, found.judged_on) == (0.1, pytest.approx(0.2), (0,))


def test_a_timed_run_stands_beside_the_dense_one_and_is_in_no_verdict() -> None:
    timed = next(one for one in scenarios(quick=False) if isinstance(one, Whole) and one.timed)
    wanted = methods(timed)
    assert wanted[0] == (DENSE, 1.0) and {name for name, _ in wanted} == {DENSE, UNIFORM, PROFILE}
    records = [
        {
            "unit": whole_unit(timed, 1, name, mean),
            "ledger": {"computed": 4, "answered": 0, "attention": 4 * mean},
            "scores": {"psnr_db": 30.0, "ssim": 0.9},
            "cpu": 50.0 * mean,
        }
        for name, mean in wanted
    ]
    rows = whole_rows(timed, records, 0.8)
    assert {found.method: (found.work, found.cpu[1]) for found in rows} == {
        DENSE: (pytest.approx(1.0), 50.0),
        UNIFORM: (pytest.approx(0.32), 7.5),
        PROFILE: (pytest.approx(0.32), 7.5),
    }
    assert whole_savings(timed, rows) == []
    assert (
        "dense 50.0 s; mean density 0.15 by a profile of seeds 3, 4 7.5 s (6.67 times as fast" in times(timed, rows)[0]
    )
    assert times(timed, rows[:1]) == []


def test_what_was_measured_is_found_again_and_rows_are_means_over_it(tmp_path: Path) -> None:
    scenario = scenarios(quick=True)[0]
    assert isinstance(scenario, Captured)
    raw = Raw(tmp_path / "units.jsonl", {"version": 1})
    key = "uniform | 0.1 | "
    for step, error in ((2, 0.01), (7, 0.04)):
        cells = {key: [[error, 1.0, 0.5, 0.08, 0.02], [0.0, 1.0, 0.0, 1.0, 0.0]], "Radial | 0.1 | ": []}
        raw.append({"unit": unit(scenario, 0, step), "cells": cells, "took": 1.0})
    known = known_cells(raw.records())
    assert set(known) == {str(unit(scenario, 0, step)) for step in (2, 7)}
    (found,) = captured_rows([scenario], raw.records())
    assert (found.method, found.budget, len(found.figures)) == (UNIFORM, 0.1, 2)
    assert found.mean("work") == pytest.approx(0.55)
    assert found.mean("rel_l2") == pytest.approx((math.sqrt(0.005) + math.sqrt(0.02)) / 2)


def test_the_report_is_written_from_what_there_is(tmp_path: Path) -> None:
    assert command.main(["--report", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "calibration.json").read_text()) == {"schema": 1, "rows": []}
    assert "not measured" in (tmp_path / "calibration.md").read_text()
    assert command.main(["--only", "nothing like it", "--out", str(tmp_path)]) == 2
