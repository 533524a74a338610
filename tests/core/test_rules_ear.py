"""Error-aware selection: errors of stand-ins token by token, remainders of tails, and budgets spent on them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.blocks import block_means
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules import ear
from draftattention.draftattn_core.method.rules.call import RuleCall
from draftattention.draftattn_core.method.selection import forced_blocks
from draftattention.kernels.types import Tail
from tests.core.cases import blocks_of
from tests.core.rule_cases import layout_of, rule_call

LAYOUTS = {
    "raster": layout_of((3, 5, 7)),
    "extra tokens on both sides": layout_of((3, 5, 7), 5, 12),
    "tiles": layout_of((4, 5, 6), 0, 9, order="tile"),
    "small query blocks": layout_of((2, 5, 5), q_block=8, k_block=16),
}
TAILS = ["mean", "linear0", "linear1", "linear2", ("none", "linear1", "mean")]
CHUNKS = [1, 40_000, 1 << 22]


def call_of(layout: Layout, **policy: object) -> RuleCall:
    return rule_call(layout, Policy(**{"density": 0.3, **policy}))  # type: ignore[arg-type]


def mean_queries(call: RuleCall) -> Tensor:
    return block_means(call.q, call.tables.perm, call.tables.q)


def pairs(call: RuleCall) -> list[tuple[int, int, list[int]]]:
    """(query block, key block, host tokens of the key block) of every pair of video blocks."""
    keys = blocks_of(call.tables, "k")[: call.tables.k.video]
    return [(a, b, tokens) for a in range(call.tables.q.video) for b, tokens in enumerate(keys)]


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_svg_ears_error_is_a_sum_over_tokens(layout: Layout, chunk_bytes: int) -> None:
    call = call_of(layout)
    q_mean = mean_queries(call)
    found = ear.token_errors(q_mean, call.k, call.v, call.tables, call.scale, chunk_bytes=chunk_bytes)
    expected = torch.empty_like(found)
    for a, b, tokens in pairs(call):
        k, v = call.k[:, :, tokens], call.v[:, :, tokens]
        s = call.scale * (q_mean[:, :, a, None] * k).sum(-1, keepdim=True)
        middle = call.scale * (q_mean[:, :, a, None] * k.mean(2, keepdim=True)).sum(-1, keepdim=True)
        expected[:, :, a, b] = (s.exp() * v - middle.exp() * v.mean(2, keepdim=True)).square().sum((2, 3)).log()
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_tight_blocks_and_large_logits_keep_their_error_in_float32() -> None:
    exact = call_of(LAYOUTS["raster"])
    for factor in (1e-3, 1.0, 40.0):
        # Factor 1e-3: blocks so tight that squares of sums would lose every digit.
        means = block_means(exact.k, exact.tables.perm, exact.tables.k)[:, :, exact.tables.k.of_token]
        v_means = block_means(exact.v, exact.tables.perm, exact.tables.k)[:, :, exact.tables.k.of_token]
        k, v = (mean + (x - mean) * min(factor, 1.0) for x, mean in ((exact.k, means), (exact.v, v_means)))
        call = replace(exact, k=k, v=v, q=exact.q * max(factor, 1.0))
        q_mean = mean_queries(call)
        double = ear.token_errors(q_mean, call.k, call.v, call.tables, call.scale)
        single = ear.token_errors(q_mean.float(), call.k.float(), call.v.float(), call.tables, call.scale)
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-3)


def block_sums(call: RuleCall, query: Tensor, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Numerator (B, H, D) and denominator (B, H) of one key block for one query (B, H, D)."""
    weights = (call.scale * (query.unsqueeze(2) * call.k[:, :, tokens]).sum(-1)).exp()
    return (weights.unsqueeze(-1) * call.v[:, :, tokens]).sum(2), weights.sum(2)


def stand_in(tail: Tail, query: Tensor, scale: float, b: int) -> tuple[Tensor, Tensor]:
    """What the tail puts in place of key block b: numerator (B, H, D) and denominator (B, H)."""
    weight = (scale * (query * tail.k_mean[:, :, b]).sum(-1) + tail.log_weight[:, b]).exp()
    value = tail.v_mean[:, :, b].clone()
    if tail.cov is not None:
        value += scale * torch.einsum("bhd,bhde->bhe", query, tail.cov)
    if tail.u is not None and tail.w is not None:
        for rank in range(tail.ranks):
            along = scale * (query * tail.u[:, :, b, rank]).sum(-1, keepdim=True)
            value += along * tail.w[:, :, b, rank]
    return weight.unsqueeze(-1) * value, weight


@pytest.mark.parametrize(("of_output", "gain"), [(True, 0.4), (False, 0.0)])
@pytest.mark.parametrize("tail", TAILS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_tail_loses_what_its_sums_lack(layout: Layout, tail: str, gain: float, of_output: bool) -> None:
    call = call_of(layout, tail=tail, tail_gain=gain)
    q_mean = mean_queries(call)
    assert call.tail is not None
    keys = blocks_of(call.tables, "k")[: call.tables.k.video]
    log_error = torch.empty(2, 3, call.tables.q.video, call.tables.k.video, dtype=torch.float64)
    log_mass = log_error[..., 0].clone()
    for a in range(call.tables.q.video):
        query = q_mean[:, :, a]
        sums = [block_sums(call, query, tokens) for tokens in keys]
        mass = torch.stack([below for _, below in sums]).sum(0)
        output = torch.stack([above for above, _ in sums]).sum(0) / mass.unsqueeze(-1)
        log_mass[:, :, a] = mass.log()
        for b, (above, below) in enumerate(sums):
            instead = stand_in(call.tail, query, call.scale, b)
            lost = above - instead[0]
            if of_output:
                lost = lost - output * (below - instead[1]).unsqueeze(-1)
            log_error[:, :, a, b] = lost.square().sum(-1).log()
    for chunk_bytes in CHUNKS:
        found = ear.tail_errors(
            q_mean, call.k, call.v, call.tables, call.tail, call.scale, of_output=of_output, chunk_bytes=chunk_bytes
        )
        torch.testing.assert_close(found.log_error, log_error, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.log_mass, log_mass, rtol=1e-12, atol=1e-12)


def test_the_error_is_how_far_the_output_moves_when_one_block_gives_way_to_its_tail() -> None:
    call = call_of(LAYOUTS["raster"], tail="linear1")
    q_mean, keys = mean_queries(call), blocks_of(call.tables, "k")
    assert call.tail is not None
    found = ear.tail_errors(q_mean, call.k, call.v, call.tables, call.tail, call.scale)
    predicted = (found.log_error / 2 - found.log_mass.unsqueeze(-1)).exp()
    for a in (0, 3):
        query = q_mean[:, :, a]
        sums = [block_sums(call, query, tokens) for tokens in keys]
        above, below = (torch.stack(part).sum(0) for part in zip(*sums))
        for b in (1, 9):
            instead = stand_in(call.tail, query, call.scale, b)
            changed = (above - sums[b][0] + instead[0]) / (below - sums[b][1] + instead[1]).unsqueeze(-1)
            moved = (changed - above / below.unsqueeze(-1)).norm(dim=-1)
            # The denominator changes too: first order only.
            torch.testing.assert_close(predicted[:, :, a, b], moved, rtol=0.05, atol=0)


def test_blocks_of_equal_tokens_have_no_error() -> None:
    call = call_of(LAYOUTS["raster"], tail="linear0")
    tables = call.tables
    k, v = (block_means(x, tables.perm, tables.k)[:, :, tables.k.of_token] for x in (call.k, call.v))
    call = replace(call, k=k, v=v)
    q_mean = mean_queries(call)
    assert call.tail is not None
    size = ear.tail_errors(q_mean, call.k, call.v, tables, replace(call.tail, log_weight=call.tail.log_weight * 0), 1.0)
    for log_error in (
        ear.token_errors(q_mean, call.k, call.v, tables, 1.0),
        ear.tail_errors(q_mean, call.k, call.v, tables, call.tail, 1.0).log_error,
    ):
        # The last block is one token: it has none either way.
        assert (log_error < size.log_error - 50)[..., :-1].all()


def promised_of(policy: Policy, columns: int, share: float) -> int:
    assert isinstance(policy.density, float)
    return max(1 if policy.drops else 0, round(share * policy.density * columns))


def best(values: list[float], count: int) -> list[int]:
    return sorted(range(len(values)), key=lambda c: (-values[c], c))[:count]


def brute_force_rows(errors: Tensor, logits: Tensor, forced: Tensor, promised: int, budget: int) -> Tensor:
    keep = torch.zeros_like(errors, dtype=torch.bool)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in errors.shape[:3])).tolist():
        b, h, r = index
        row = [math.inf if forced[r, c] else float(x) for c, x in enumerate(logits[b, h, r])]
        sure = best(row, max(promised, int(forced[r].sum())))
        score = [math.inf if c in sure else float(x) for c, x in enumerate(errors[b, h, r])]
        keep[b, h, r, best(score, max(budget, len(sure)))] = True
    return keep


@pytest.mark.parametrize("density", [0.02, 0.3, 0.7])
@pytest.mark.parametrize("tail", ["none", "mean"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_spend_their_density_on_the_largest_errors_per_area(layout: Layout, tail: str, density: float) -> None:
    call = call_of(layout, tail=tail, density=density)
    tables, columns = call.tables, call.tables.k.video
    q_mean, k_mean = (block_means(x, tables.perm, t) for x, t in ((call.q, tables.q), (call.k, tables.k)))
    counts = tables.k.counts[:columns].double().log()
    logits = call.scale * q_mean @ k_mean.transpose(-1, -2) + counts
    errors = ear.token_errors(q_mean, call.k, call.v, tables, call.scale) - counts
    expected = torch.ones(2, 3, tables.q.total, tables.k.total, dtype=torch.bool)
    budgets = promised_of(call.policy, columns, call.policy.floor), promised_of(call.policy, columns, 1.0)
    expected[:, :, : tables.q.video, :columns] = brute_force_rows(
        errors, logits, forced_blocks(tables, call.policy), *budgets
    )
    assert torch.equal(ear.select(call), expected)


@pytest.mark.parametrize("tail", ["linear1", ("none", "linear1", "mean")], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_heads_spend_their_density_where_their_tail_moves_the_output_most(layout: Layout, tail: str) -> None:
    call = call_of(layout, tail=tail)
    tables, columns, rows = call.tables, call.tables.k.video, call.tables.q.video
    q_mean, k_mean = (block_means(x, tables.perm, t) for x, t in ((call.q, tables.q), (call.k, tables.k)))
    counts = tables.k.counts[:columns].double().log()
    logits = call.scale * q_mean @ k_mean.transpose(-1, -2) + counts
    assert call.tail is not None
    lost = ear.tail_errors(q_mean, call.k, call.v, tables, call.tail, call.scale)
    errors = lost.log_error - 2 * lost.log_mass.unsqueeze(-1) - counts
    forced = forced_blocks(tables, call.policy)
    promised = promised_of(call.policy, columns, call.policy.floor)
    expected = torch.ones(2, 3, tables.q.total, tables.k.total, dtype=torch.bool)
    sure = brute_force_rows(errors, logits, forced, promised, 0)
    for b in range(2):
        for h in range(3):
            score = errors[b, h].masked_fill(sure[b, h], math.inf).flatten().tolist()
            chosen = best(score, max(round(0.3 * rows * columns), int(sure[b, h].sum())))
            flat = torch.zeros(rows * columns, dtype=torch.bool)
            flat[chosen] = True
            expected[b, h, :rows, :columns] = flat.view(rows, columns)
    assert torch.equal(ear.select_by_tail_error(call), expected)


def test_ranking_by_a_tail_needs_one() -> None:
    with pytest.raises(ValueError, match="needs a tail"):
        ear.select_by_tail_error(call_of(LAYOUTS["raster"], tail="none"))


@pytest.mark.parametrize("mass, least", [(0.5, 0.0), (0.9, 0.0), (0.9, 0.2), (1.0, 0.0), (0.3, 0.45)])
def test_the_published_budget_counts_the_blocks_that_hold_the_mass(mass: float, least: float) -> None:
    logits = torch.randn(2, 3, 4, 11, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 2
    found = ear.budget_by_mass(logits, mass, least)
    for row, count in zip(logits.view(-1, 11), found.flatten().tolist()):
        held, needed = 0.0, 0
        for value in row.softmax(-1).sort(descending=True).values.tolist():
            if held < mass:
                needed += 1
            held += value
        assert count == max(needed, min(11, 2 * int(least * 11)))
