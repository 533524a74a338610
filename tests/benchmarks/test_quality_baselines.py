"""Published systems in the quality bench: at the work they are asked for, and beside dense attention."""

from __future__ import annotations

import pytest
import torch

from benchmarks.quality import plan as plans
from benchmarks.quality.baselines import FULL_EVERY, PEERS, Rettention, baselines, ordered, reorders
from benchmarks.quality.capture import dense_attention
from benchmarks.quality.end_to_end import Setting, SparseRun
from benchmarks.quality.rows import Row, all_rows, distinct
from benchmarks.quality.selection import Source, choose
from draftattention.draftattn_core import TableCache, TokenGrid
from draftattention.draftattn_core.geometry.layout import build_tables
from tests.benchmarks.quality_sources import GRID, qkv, source_of

ROWS = {row.name: row for row in baselines()}
ALONE = [row for row in ROWS.values() if row.kind != "rettention" and row.group == "baseline"]


def problem_of(name: str) -> tuple[TokenGrid, float]:
    """Grid and target share of work. Radial attention's narrowest mask of a short video keeps nearly all of it."""
    return (TokenGrid(16, 16, 16), 0.8) if name.startswith("radial") else (GRID, 0.6)


def test_they_stay_out_of_the_main_table_whose_results_are_kept() -> None:
    assert {row.group for row in all_rows()}.isdisjoint({"baseline"})
    rows, twins = distinct(baselines())
    assert not twins and len(rows) == len(ROWS)
    plan = plans.baselines()
    assert set(PEERS) < set(ROWS)
    # Whole runs of the peers are in the main table.
    assert {row for part in plan.end_to_end for row, *_ in part.scenarios} == set(ROWS) - set(PEERS)


@pytest.mark.parametrize("row", ALONE, ids=lambda row: row.name)
def test_a_system_costs_what_it_is_given_as_far_as_its_masks_allow(row: Row) -> None:
    grid, target = problem_of(row.name)
    source, _ = ordered(row, Source(*qkv(grid), build_tables(row.layout(grid))))
    chosen = choose(row, source, target)
    assert chosen is not None
    # Bands and windows come in whole blocks of all rows at once.
    coarse = row.name.startswith(("svg", "radial"))
    assert abs(chosen.exact + chosen.tail_work - target) <= (0.15 if coarse else 1.0 / source.tables.k.video)


def test_tail_error_costs_what_it_is_given() -> None:
    row = ROWS["tail_error"]
    chosen = choose(row, source_of(row), 0.3)
    assert chosen is not None and chosen.exact + chosen.tail_work == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("name", ["svg", "radial", "adaspa", "ear"])
def test_a_run_is_near_dense_attention_and_nearer_with_our_tail_at_equal_work(name: str) -> None:
    grid, target = problem_of(name)
    q, k, v = qkv(grid)
    dense = dense_attention(q, k, v, 0, 0)
    errors = {}
    for row in (name, f"{name}_tail"):
        run = SparseRun(ROWS[row], target, Setting(grid, 20, 0.25, 1.0), TableCache())
        out = run(q, k, v, 0, 5)
        errors[row] = float((out - dense).norm() / dense.norm())
    assert 0 < errors[f"{name}_tail"] < errors[name] < 0.9, errors


def test_heads_of_an_order_of_their_own_come_back_in_the_hosts() -> None:
    row = ROWS["svg"]
    assert reorders(row) and not reorders(ROWS["radial"])
    source, order = ordered(row, source_of(row))
    assert order is not None
    q, _, _ = qkv()
    assert torch.equal(order.after(source.q), q)


def test_adaspa_searches_twice_in_a_run() -> None:
    run = SparseRun(ROWS["adaspa"], 0.4, Setting(GRID, 20, 0.25, 1.0), TableCache())
    kept = []
    for step in (5, 6, 11, 12, 19):
        q, k, v = (x + 0.02 * step for x in qkv())
        run(q * (1 + 0.1 * step), k, v, 0, step)
        kept.append(run.chosen[0, 0][0])
    assert kept[0] is kept[1] is kept[2] and kept[3] is kept[4] and kept[2] is not kept[3]


def test_rettention_is_exact_where_nothing_changes_and_its_full_steps_count() -> None:
    row, setting = ROWS["rettention"], Setting(GRID, 20, 0.25, 1.0)
    run = SparseRun(row, 0.7, setting, TableCache())
    q, k, v = qkv()
    dense = dense_attention(q, k, v, 0, 0)
    for step in range(20):
        out = run(q, k, v, 0, step)
        if step <= 4 or (step - 4) % FULL_EVERY == 0:
            assert torch.equal(out, dense), step
        elif (step - 4) % FULL_EVERY == 1:
            # Ratio and residual of the very same call: what the window lacks is back.
            torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-4 * float(dense.abs().max()))
        else:
            assert 0 < float((out - dense).norm() / dense.norm()) < 0.3, step
    assert run.executed.count(1.0) == 3 and len(run.executed) == 15
    assert sum(run.executed) / 15 == pytest.approx(0.7, abs=0.1)


def test_rettention_cannot_run_where_its_full_steps_alone_cost_more() -> None:
    assert Rettention(ROWS["rettention"], 0.15, 5, 20).density() < 0
    run = SparseRun(ROWS["rettention"], 0.15, Setting(GRID, 20, 0.25, 1.0), TableCache())
    with pytest.raises(ValueError, match="its full steps cost more"):
        run(*qkv(), 0, 4)
