"""The quality bench: equal work, the peers' formulas, the oracle, the row table, the hook into the model."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core import Layout, Policy, TokenGrid
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.method.policy import TAILS
from draftattention.draftattn_core.method.selection import select_blocks
from draftattention.draftattn_core.run.probe import HeadTails, sample_rows

pytest.importorskip("diffusers")

from benchmarks.quality import plan as plans
from benchmarks.quality.capture import attention_replaced, capture, dense_attention
from benchmarks.quality.captured import study_call, summarise
from benchmarks.quality.end_to_end import Setting, SparseRun, steps_at_equal_compute
from benchmarks.quality.errors import SampledRows, figures
from benchmarks.quality.peer import load_peer, peer_itself, sol_keep
from benchmarks.quality.report import CAPTURED_COLUMNS, Results, write
from benchmarks.quality.rows import Row, all_rows, distinct, ladder, ours, paper
from benchmarks.quality.selection import Source, block_mass, cell_scores, choose, probed_tails
from benchmarks.quality.verdicts import verdicts
from benchmarks.quality.work import exact_share, solve, spread_counts, tail_shares
from demo import checkpoint
from demo.sample import sample
from draftattention.draftattn_core import TableCache

GRID = TokenGrid(6, 16, 21)  # 2,016 tokens: the last block of 64 and of 128 is short


def qkv(grid: TokenGrid = GRID, heads: int = 2, dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth over the grid, so that blocks differ."""
    generator = torch.Generator().manual_seed(3)
    shape = (1, heads * dim, *grid.as_tuple())
    coarse = torch.randn((3, heads * dim, 3, 4, 4), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=grid.as_tuple(), mode="trilinear")
    noisy = 2 * smooth + 0.3 * torch.randn((3, *shape[1:]), generator=generator)
    q, k, v = noisy.view(3, 1, heads, dim, -1).transpose(-1, -2)
    return q, k, v


def source_of(row: Row) -> Source:
    return Source(*qkv(), build_tables(row.layout(GRID)))


def row_named(name: str) -> Row:
    return next(row for row in all_rows() if row.name == name)


# Equal work


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


# Peers


def naive_sol(q: Tensor, k: Tensor, v: Tensor, kept_per_row: list[int]) -> Tensor:
    """The recipe for one head (L, D), query by query, block by block."""
    length, dim = q.shape
    blocks = [range(start, min(start + 64, length)) for start in range(0, length, 64)]
    scale = dim**-0.5
    out = torch.zeros_like(q)
    for i, rows in enumerate(blocks):
        mean_q = q[rows.start : rows.stop].mean(0)
        scores = {j: float(mean_q @ k[c.start : c.stop].mean(0)) for j, c in enumerate(blocks)}
        kept = {j for j in scores if abs(i - j) <= 1}
        for j in sorted(scores, key=lambda j: -scores[j]):
            if len(kept) < kept_per_row[i]:
                kept.add(j)
        for row in rows:
            above, below = torch.zeros(dim), 0.0
            for j, columns in enumerate(blocks):
                keys, values = k[columns.start : columns.stop], v[columns.start : columns.stop]
                if j in kept:
                    weights = (scale * keys @ q[row]).exp()
                    above, below = above + weights @ values, below + float(weights.sum())
                else:
                    weight = float((scale * keys.mean(0) @ q[row]).exp())
                    above, below = above + weight * values.sum(0), below + weight * len(columns)
            out[row] = above / below
    return out


def test_sol_recipe_is_what_its_description_says() -> None:
    grid = TokenGrid(1, 15, 40)
    row = row_named("sol")
    q, k, v = qkv(grid, heads=1)
    source = Source(q, k, v, build_tables(row.layout(grid)))
    chosen = choose(row, source, 0.45)
    assert chosen is not None
    kept = chosen.keep[0, 0].sum(-1).tolist()
    assert len(set(kept)) > 1
    expected = naive_sol(q[0, 0], k[0, 0], v[0, 0], kept)
    out = attend_reference(source.request(chosen))[0, 0]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_sol_always_keeps_neighbours() -> None:
    keep = sol_keep(torch.randn(1, 1, 20, 20, generator=torch.Generator().manual_seed(0)), 0.0)
    index = torch.arange(20)
    assert torch.equal(keep[0, 0], (index[:, None] - index).abs() <= 1)


@pytest.mark.parametrize("name", ["peer_topk", "peer_tau"])
def test_peer_rows_are_comfy_kitchen_itself(name: str) -> None:
    sol_attn = load_peer()
    if sol_attn is None:
        pytest.skip("comfy-kitchen is not installed")
    row = row_named(name)
    source = source_of(row)
    chosen = choose(row, source, 0.3)
    assert chosen is not None and 0.1 < chosen.exact < 0.4
    tokens = torch.arange(0, GRID.tokens, 7)
    found = SampledRows(source, tokens).output(chosen)
    how = {"ratio": chosen.parameter} if name == "peer_topk" else {"tau": chosen.parameter}
    itself = peer_itself(sol_attn, source.q, source.k, source.v, **how)[0, :, tokens]
    torch.testing.assert_close(found, itself, rtol=1e-4, atol=1e-5)


# Errors on sampled rows


def test_gains_fitted_to_sampled_rows_are_the_error_probe_s() -> None:
    row = row_named("ours")
    source = source_of(row)
    source.q *= 3
    chosen = choose(row, source, 0.3)
    assert chosen is not None
    rows = SampledRows(source, source.tables.perm[sample_rows(GRID.tokens, 64, seed=5)])
    fitted = rows.fitted(chosen)
    assert any(fitted.gains) and fitted == probed_tails(row, source, 0.3, seed=5)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", ["ours", "paper", "sol"])
def test_sampled_rows_agree_with_the_reference_backend(name: str, tail: str) -> None:
    row = row_named(name)
    source = source_of(row)
    chosen = choose(row, source, 0.3, HeadTails((tail, "mean"), (0.25, -0.5)))
    assert chosen is not None
    tokens = torch.tensor([0, 5, 700, 1999, 2015])
    rows = SampledRows(source, tokens)
    out = attend_reference(source.request(chosen))[0, :, tokens]
    torch.testing.assert_close(rows.output(chosen), out, rtol=1e-4, atol=1e-5)
    dense = dense_attention(source.q, source.k, source.v, 0, 0)[0, :, tokens]
    torch.testing.assert_close(rows.dense, dense, rtol=1e-4, atol=1e-5)


def test_figures_are_the_stated_norms() -> None:
    dense = torch.ones(1, 40, 4)
    out = dense.clone()
    out[0, 0] *= 3  # relative error 2
    out[0, 1] *= 2  # relative error 1
    found = figures(out, dense, torch.full((1, 40), 0.25))
    assert found.relative_l2 == pytest.approx(math.sqrt(5 / 40))
    assert found.worst == pytest.approx(1.5)  # the worst 5 % are two rows
    assert found.recall == 0.25


def test_recall_is_the_kept_mass() -> None:
    source = source_of(paper())
    chosen = choose(paper(), source, 0.3)
    assert chosen is not None
    tables = source.tables
    weights = torch.softmax(source.q @ source.k.transpose(-1, -2) * source.scale, -1)[..., tables.perm, :]
    kept = chosen.keep[:, :, tables.q.of_token][:, :, :, tables.k.of_token[tables.inverse]]
    everywhere = SampledRows(source, torch.arange(GRID.tokens)).errors(chosen)
    assert everywhere.recall == pytest.approx((weights * kept).sum(-1).mean().item(), abs=1e-5)


# Oracle


def test_block_mass_is_the_pooled_softmax_map() -> None:
    source = source_of(ours())
    tables = source.tables
    weights = torch.softmax(source.q @ source.k.transpose(-1, -2) * source.scale, -1)
    weights = weights[..., tables.perm, :][..., tables.perm][0]
    expected = torch.zeros(2, tables.q.video, tables.k.video)
    for i in range(tables.q.video):
        for j in range(tables.k.video):
            rows = slice(tables.q.bounds[i], tables.q.bounds[i + 1])
            columns = slice(tables.k.bounds[j], tables.k.bounds[j + 1])
            expected[:, i, j] = weights[:, rows, columns].sum(-1).mean(-1)
    torch.testing.assert_close(block_mass(source.q, source.k, tables, source.scale)[0], expected)


def test_oracle_keeps_more_mass_than_the_draft() -> None:
    row = row_named("drop_oracle")
    source = source_of(row)
    rows = SampledRows(source, torch.arange(GRID.tokens))
    true, drafted = (choose(replace(row, scores=scores), source, 0.3) for scores in ("true_mass", "draft"))
    assert true is not None and drafted is not None
    assert rows.errors(true).recall > rows.errors(drafted).recall


def test_cell_scores_with_cells_of_one_token_are_the_true_mass() -> None:
    source = source_of(ours())
    mass = cell_scores(source, softmax=True, cell=1).softmax(-1)
    torch.testing.assert_close(mass, source.block_mass(), rtol=1e-4, atol=1e-6)


def test_cell_scores_sum_the_exponentials_of_cell_pairs() -> None:
    source = source_of(ours())
    tables = source.tables
    q, k = (x[0, 0, tables.perm].split(16) for x in (source.q, source.k))
    q, k, sizes = torch.stack([x.mean(0) for x in q]), torch.stack([x.mean(0) for x in k]), [len(x) for x in k]
    pairs = (q @ k.T * source.scale).exp() * torch.tensor(sizes)
    expected = pairs[:8, :4].sum().log() - pairs[:8, 4:8].sum().log()
    scores = cell_scores(source, softmax=False)[0, 0]
    torch.testing.assert_close(scores[0, 0] - scores[0, 1], expected)


# The table


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


# The model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return checkpoint.new_model(num_layers=2, ffn_dim=64, num_attention_heads=2, attention_head_dim=32).eval()


def test_hook_leaves_the_model_as_it_was(model) -> None:
    grid = TokenGrid(2, 4, 5)
    before = [block.attn1.processor for block in model.blocks]
    plain = sample(model, "pan", grid.as_tuple(), steps=2)
    seen = []

    def spy(q: Tensor, k: Tensor, v: Tensor, layer: int, step: int) -> Tensor:
        seen.append((layer, step, tuple(q.shape)))
        return dense_attention(q, k, v, layer, step)

    with attention_replaced(model, spy):
        hooked = sample(model, "pan", grid.as_tuple(), steps=2)
    torch.testing.assert_close(hooked, plain, rtol=1e-4, atol=1e-5)
    # two steps of a conditional and an unconditional call, two layers each
    assert seen == [(layer, step, (1, 2, 40, 32)) for step in (0, 0, 1, 1) for layer in (0, 1)]
    assert [block.attn1.processor for block in model.blocks] == before
    assert torch.equal(sample(model, "pan", grid.as_tuple(), steps=2), plain)


def test_capture_keeps_the_calls_asked_for(model) -> None:
    calls = capture(model, "both", TokenGrid(2, 4, 5), seed=1, steps=4, at_steps=(0, 2), layers=(1,))
    assert [(call.step, call.layer) for call in calls] == [(0, 1), (2, 1)]
    assert calls[0].q.shape == (1, 2, 40, 32) and not torch.equal(calls[0].q, calls[1].q)


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


def test_files_hold_what_was_measured(tmp_path, model) -> None:
    rows, twins = distinct([row_named(name) for name in ("sol", "paper", "ours", "spread_on")])
    grid = TokenGrid(4, 16, 16)
    (call,) = capture(model, "both", grid, seed=0, steps=2, at_steps=(0,), layers=(0,))
    measured, checks = study_call(call, rows, [0.3], sampled=32, cache=TableCache())
    summaries = summarise(measured)
    results = Results(
        "tiny", [("device", "cpu")], {r.name: r for r in rows}, twins, summaries, checks, [], ["nothing else"]
    )
    paths = write(results, tmp_path)
    assert {path.name for path in paths} == {"captured_tiny.csv", "quality_tiny.png", "quality_tiny.md"}
    with (tmp_path / "captured_tiny.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == CAPTURED_COLUMNS
    found = {line["row"]: float(line["relative_l2"]) for line in lines}
    assert found == {s.row: pytest.approx(s.relative_l2, abs=1e-5) for s in summaries}
    first = verdicts(summaries, [])[2 * 2]
    assert first.target == "error of ours at 30% <= 0.4 x sol"
    assert first.met == (found["ours"] <= 0.4 * found["sol"])
    page = (tmp_path / "quality_tiny.md").read_text(encoding="utf-8")
    assert first.figure in page and "nothing else" in page and "not measured" in page
