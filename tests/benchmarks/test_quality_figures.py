"""Figures of the quality bench: the formulas of peers, errors on sampled rows, the oracle, what files hold."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core import TokenGrid
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.method.policy import TAILS
from draftattention.draftattn_core.run.probe import HeadTails, sample_rows

pytest.importorskip("diffusers")

from benchmarks.quality.capture import attention_replaced, capture, dense_attention
from benchmarks.quality.captured import study_call, summarise
from benchmarks.quality.errors import SampledRows, figures
from benchmarks.quality.peer import kitchen_itself, load_peer, peer_itself, sol_keep
from benchmarks.quality.report import CAPTURED_COLUMNS, Results, write
from benchmarks.quality.rows import distinct, ours, paper
from benchmarks.quality.selection import Source, block_mass, cell_scores, choose, probed_tails
from benchmarks.quality.verdicts import verdicts
from demo import checkpoint
from demo.sample import sample
from draftattention.draftattn_core import TableCache
from tests.benchmarks.quality_sources import GRID, qkv, row_named, source_of


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


@pytest.mark.parametrize("name", ["kitchen", "kitchen_no_gain"])
def test_rows_of_the_backend_kitchen_are_that_backend(name: str) -> None:
    if load_peer() is None:
        pytest.skip("comfy-kitchen is not installed")
    row = row_named(name)
    source = source_of(row)
    source.q *= 3
    chosen = choose(row, source, 0.3)
    assert chosen is not None and chosen.shared_tail
    rows = SampledRows(source, source.tables.perm[sample_rows(GRID.tokens, 64, seed=5)])
    if row.fits_gain:
        chosen = replace(chosen, tails=rows.fitted(chosen))
        assert any(chosen.tails.gains) and chosen.tails == probed_tails(row, source, 0.3, seed=5)
    tokens = torch.arange(0, GRID.tokens, 7)
    itself = kitchen_itself(source.q, source.k, source.v, source.tables.layout, chosen.parameter, chosen.tails.gains)
    torch.testing.assert_close(SampledRows(source, tokens).output(chosen), itself[0, :, tokens], rtol=1e-4, atol=1e-5)


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


def test_files_hold_what_was_measured(tmp_path, model) -> None:
    rows, twins = distinct([row_named(name) for name in ("sol", "paper", "ours", "spread_on")])
    grid = TokenGrid(4, 16, 16)
    (call,) = capture(model, "both", grid, seed=0, steps=2, at_steps=(0,), layers=(0,))
    measured, checks = study_call(call, rows, [0.3], sampled=32, cache=TableCache())
    summaries = summarise(measured)
    results = Results(
        "tiny", [("device", "cpu")], {r.name: r for r in rows}, twins, summaries, checks, [], ["nothing else"]
    )
    write(results, tmp_path)
    with (tmp_path / "captured_tiny.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == CAPTURED_COLUMNS
    found = {line["row"]: float(line["relative_l2"]) for line in lines}
    assert found == {s.row: pytest.approx(s.relative_l2, abs=1e-5) for s in summaries}
    first = verdicts(summaries, [])[2 * 2]
    assert first.target == "error of ours at 30% <= 0.4 x sol"
    assert first.met == (found["ours"] <= 0.4 * found["sol"])
