"""The quality bench compares at equal work: what rows cost, and the rows and runs that are compared."""

from __future__ import annotations

import math

import pytest
import torch

from draftattention.draftattn_core import Layout, Policy
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.method.selection import select_blocks

pytest.importorskip("diffusers")

from benchmarks.quality import plan as plans
from benchmarks.quality.capture import dense_attention
from benchmarks.quality.end_to_end import Setting, SparseRun, steps_at_equal_compute
from benchmarks.quality.rows import Row, all_rows, distinct, ladder, ours, paper
from benchmarks.quality.selection import choose
from benchmarks.quality.work import exact_share, solve, spread_counts, tail_shares
from draftattention.draftattn_core import TableCache
from tests.benchmarks.quality_sources import GRID, qkv, row_named, source_of


@pytest.mark.parametrize("target", [0.0, 0.123, 0.5, 1.0])
@pytest.mark.parametrize("guess", [0.0, 0.4, 1.0])
def test_solver_finds_the_argument_that_gives_the_target(target: float, guess: float) -> None:
    found = solve(lambda x: x * x, target, guess=guess, tolerance=1e-6)
    assert found is not None and abs(found * found - target) < 1e-6


def test_solver_takes_the_closer_side_of_a_jump() -> None:
    def steps(x: float) -> float:
        return math.floor(10 * x) / 10

    assert steps(solve(steps, 0.43, guess=0.9) or -1) == pytest.approx(0.4)
    assert steps(solve(steps, 0.47, guess=0.0) or -1) == pytest.approx(0.5)


def test_solver_gives_up_where_even_nothing_costs_too_much() -> None:
    assert solve(lambda x: 0.2 + x, 0.1, guess=0.0) is None


def test_row_counts_meet_any_mean() -> None:
    counts = spread_counts(4.64, 135)
    assert set(counts.tolist()) == {4, 5}
    assert abs(counts.double().mean().item() - 4.64) <= 1 / 135
    assert (counts[:50].double().mean() - 4.64).abs() < 0.05, "rounding up is spread over the rows"


def test_exact_share_counts_token_pairs_of_short_blocks() -> None:
    tables = build_tables(Layout(GRID, q_block=128, k_block=64))
    keep = torch.rand(1, 2, tables.q.video, tables.k.video, generator=torch.Generator().manual_seed(0)) < 0.3
    tokens = keep[:, :, tables.q.of_token][:, :, :, tables.k.of_token]
    assert exact_share(keep, tables) == pytest.approx(tokens.double().mean().item(), abs=1e-12)


@pytest.mark.parametrize("row", distinct(all_rows())[0], ids=lambda row: row.name)
def test_every_row_costs_what_it_is_given(row: Row) -> None:
    source, target = source_of(row), 0.26
    chosen = choose(row, source, target)
    assert chosen is not None
    assert chosen.exact == pytest.approx(exact_share(chosen.keep, source.tables))
    if not chosen.shared_tail:
        assert chosen.tail_work == pytest.approx(sum(tail_shares(chosen.tails.names, source.tables, 16)) / 2)
    columns = source.tables.k.video
    # Row top-k keeps whole blocks in every row of a head; comfy-kitchen's in every row of the call, plus neighbours.
    tolerance = 2 / (source.tables.q.video * columns)
    if row.policy.method == "row":
        tolerance = 0.6 / (columns * source.heads)
    if row.kind == "peer_topk":
        tolerance = 0.6 / columns
    assert abs(chosen.exact + chosen.tail_work - target) <= tolerance


def test_a_tail_dearer_than_the_target_cannot_run() -> None:
    row = row_named("q64_k64_linear2")
    assert choose(row, source_of(row), 0.04) is None


def test_rows_have_unique_names_and_say_what_they_are() -> None:
    rows = all_rows()
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.name and row.label and row.group for row in rows)
    kept, twins = distinct(rows)
    assert {row.name for row in kept} | set(twins) == {row.name for row in rows}
    assert set(twins.values()) <= {row.name for row in kept}


def test_ladder_ends_at_the_defaults() -> None:
    steps = ladder()
    assert steps[-1].what_it_does() == ours().what_it_does()
    assert len({step.what_it_does() for step in steps}) == len(steps)


def test_paper_row_is_the_published_rule() -> None:
    source = source_of(paper())
    chosen = choose(paper(), source, 0.3)
    assert chosen is not None and set(chosen.tails.names) == {"none"}
    from draftattention.draftattn_core.method.draft import draft_logits, make_draft

    draft = make_draft(source.q, source.k, source.tables, spread=False)
    scores = draft_logits(draft, source.tables, source.scale)
    published = select_blocks(scores, source.tables, Policy.paper(chosen.parameter))
    assert torch.equal(chosen.keep, published)


@pytest.mark.parametrize("plan", [plans.quick(), plans.full(), plans.full(on_gpu=True)], ids=["quick", "full", "gpu"])
def test_plans_name_rows_that_exist_once(plan: plans.Plan) -> None:
    names = {row.name for row in all_rows()} | {plans.DENSE_FEWER}
    for part in plan.end_to_end:
        assert len(set(part.scenarios)) == len(part.scenarios)
        assert {row for row, *_ in part.scenarios} <= names
    assert plan.captured is not None and all(grid.tokens >= 8000 for grid in plan.captured.grids)


def test_sparse_run_is_dense_while_warming_up() -> None:
    setting = Setting(GRID, 20, 0.25, 1.0)
    run = SparseRun(ours(), 0.3, setting, TableCache())
    q, k, v = qkv()
    dense = dense_attention(q, k, v, 0, 0)
    assert torch.equal(run(q, k, v, 0, 4), dense)
    assert run.executed == []
    assert not torch.equal(run(q, k, v, 0, 5), dense)
    assert run.executed == pytest.approx([0.3], abs=0.01)


def test_equal_compute_counts_the_rest_of_the_model() -> None:
    setting = Setting(GRID, 20, 0.25, 1.0)
    assert steps_at_equal_compute(setting, 0.2, share=1.0) == 8  # 5 dense + 15 x 0.2
    assert steps_at_equal_compute(setting, 0.2, share=0.5) == 14  # 0.5 x 20 + 0.5 x 8
    assert steps_at_equal_compute(setting, 1.0, share=0.8) == 20
