"""Block statistics and the draft map against loops over host tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.geometry import blocks as blocks_module
from draftattention.draftattn_core.geometry.blocks import block_means, block_means_and_spread
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.draft import draft_logits, make_draft
from draftattention.draftattn_core.method.policy import TAILS, Policy, TailName
from tests.core.cases import blocks_of, small_layout, smooth_qkv

LAYOUTS = [
    small_layout((3, 5, 7)),
    small_layout((3, 5, 7), 5, 3, 8, 16),
    small_layout((1, 1, 1)),
    small_layout((2, 4, 8)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_means_and_spread_are_those_of_the_real_tokens(layout: Layout) -> None:
    _, k, _ = smooth_qkv(layout, batch=2)
    tables = build_tables(layout)
    means, spread = block_means_and_spread(k, tables.perm, tables.k)
    for j, block in enumerate(blocks_of(tables, "k")[: tables.k.video]):
        tokens = k[:, :, block]
        torch.testing.assert_close(means[:, :, j], tokens.mean(2), rtol=0, atol=1e-14)
        expected = (tokens - tokens.mean(2, keepdim=True)).square().sum(-1).mean(2)
        torch.testing.assert_close(spread[:, :, j], expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(block_means(k, tables.perm, tables.k), means, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    layout = small_layout((4, 8, 8), q_block=128, k_block=128)
    k = (smooth_qkv(layout)[1] + 100).to(dtype)
    tables = build_tables(layout)
    means = block_means(k, tables.perm, tables.k)
    assert means.dtype == torch.float32
    exact = block_means(k.double(), tables.perm, tables.k)
    torch.testing.assert_close(means.double(), exact, rtol=1e-6, atol=0)


def test_spread_survives_a_large_common_mean() -> None:
    # A short last block: its empty slots must not cost the spread its digits.
    layout = small_layout((1, 1, 9))
    k = (smooth_qkv(layout)[1] * 0.01 + 100).float()
    tables = build_tables(layout)
    _, spread = block_means_and_spread(k, tables.perm, tables.k)
    _, exact = block_means_and_spread(k.double(), tables.perm, tables.k)
    torch.testing.assert_close(spread.double(), exact, rtol=1e-3, atol=1e-7)


def test_heads_in_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = small_layout()
    q, k, _ = smooth_qkv(layout, heads=5)
    tables = build_tables(layout)
    whole = block_means_and_spread(k, tables.perm, tables.k)
    monkeypatch.setattr(blocks_module, "_CHUNK_BYTES", 1)
    for a, b in zip(block_means_and_spread(k, tables.perm, tables.k), whole):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_draft_scores_are_pooled_logits_plus_log_count_plus_half_log_spread(layout: Layout) -> None:
    q, k, _ = smooth_qkv(layout, batch=2)
    tables = build_tables(layout)
    scale = 0.3
    plain = draft_logits(make_draft(q, k, tables, spread=False), tables, scale)
    spread = draft_logits(make_draft(q, k, tables, spread=True), tables, scale)
    for i, q_tokens in enumerate(blocks_of(tables, "q")[: tables.q.video]):
        for j, k_tokens in enumerate(blocks_of(tables, "k")[: tables.k.video]):
            keys = k[:, :, k_tokens]
            expected = scale * (q[:, :, q_tokens].mean(2) * keys.mean(2)).sum(-1) + math.log(len(k_tokens))
            torch.testing.assert_close(plain[:, :, i, j], expected, rtol=0, atol=1e-12)
            if len(k_tokens) > 1:
                variance = (keys - keys.mean(2, keepdim=True)).square().sum(-1).mean(2)
                torch.testing.assert_close(spread[:, :, i, j], expected + 0.5 * variance.log(), rtol=0, atol=1e-9)
            else:
                # A block of one token is its own mean: its tail is exact, so it ranks behind every other.
                assert (spread[:, :, i, j] < expected - 100).all()


def test_heads_without_a_tail_rank_by_mass_alone() -> None:
    """What the spread adds is the error of an expansion; a block that is dropped has none, only its mass."""
    layout = small_layout()
    q, k, v = smooth_qkv(layout, heads=3)
    tables = build_tables(layout)
    plain, spread = (draft_logits(make_draft(q, k, tables, spread=on), tables, 0.3) for on in (False, True))
    mixed = Policy(tail=("linear1", "none", "mean"))
    scores = draft_logits(make_draft(q, k, tables, spread=mixed.of(3).spreads), tables, 0.3)
    assert torch.equal(scores[:, 1], plain[:, 1])
    for head in (0, 2):
        assert torch.equal(scores[:, head], spread[:, head])
    assert not torch.equal(plain, spread)
    assert replace(mixed, spread=False).of(3).spreads == (False,) * 3

    def kept(**policy: Any) -> torch.Tensor:
        return attend(q, k, v, layout, Policy(density=0.3, **policy)).request.keep

    assert torch.equal(kept(tail="none"), kept(tail="none", spread=False))
    assert not torch.equal(kept(tail="mean"), kept(tail="mean", spread=False))
    one_by_one = kept(tail=("mean", "none", "mean"))
    assert torch.equal(one_by_one[:, 0], kept(tail="mean")[:, 0])


def test_scores_that_are_not_numbers_rank_last_and_infinities_stay_below_what_is_forced() -> None:
    layout = small_layout()
    q, k, _ = smooth_qkv(layout)
    tables = build_tables(layout)
    blocks = blocks_of(tables, "k")
    k[:, :, blocks[2][0]] = torch.nan
    k[:, :, blocks[3][0], 0] = torch.inf
    scores = draft_logits(make_draft(q.abs(), k, tables, spread=False), tables, 1.0)
    assert not scores.isnan().any()
    assert (scores[..., 2] == -torch.inf).all()
    assert (scores[..., 3] == torch.finfo(scores.dtype).max).all()


@pytest.mark.parametrize("tail", TAILS)
def test_keys_are_brought_into_block_order_once_for_draft_and_tail(tail: TailName) -> None:
    layout = Layout(TokenGrid(3, 5, 7), 0, 4, 16, 16)
    q, k, v = (torch.randn(1, 2, layout.tokens, 16) for _ in range(3))

    class Gathers(TorchFunctionMode):
        seen = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is Tensor.index_select and args[0].dim() == 4 and args[0].data_ptr() == k.data_ptr():
                self.seen += 1
            return func(*args, **(kwargs or {}))

    with Gathers() as gathers:
        attend(q, k, v, layout, Policy(tail=tail), backend="reference")
    assert gathers.seen == 1
