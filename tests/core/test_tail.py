"""The tail's ingredients: means, average cross-covariance, singular pairs; each against the plain definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import TAILS, TailName
from draftattention.draftattn_core.method.tail.expand import (
    expand_blocks,
    make_tail,
    singular_pairs,
    tail_from,
)
from draftattention.draftattn_core.method.tail.formula import tail_key_equivalents
from tests.core.cases import blocks_of, relative, small_layout, smooth_qkv

LAYOUTS = [
    small_layout((3, 5, 7)),
    small_layout((3, 5, 7), 5, 3, 8, 16),
    small_layout((1, 1, 1)),
    small_layout((4, 4, 8)),
]


def covariances(k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """C_j of every video key block (B, H, g, D, D), from the host's tokens."""
    tables = build_tables(layout)
    found = []
    for block in blocks_of(tables, "k")[: tables.k.video]:
        keys, values = (x[:, :, block] - x[:, :, block].mean(2, keepdim=True) for x in (k, v))
        found.append(torch.matmul(keys.transpose(-1, -2), values) / len(block))
    return torch.stack(found, dim=2)


def from_pairs(u: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("...rd,...re->...de", u, w)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", TAILS)
def test_a_tail_holds_the_means_and_covariances_of_its_blocks(layout: Layout, name: TailName) -> None:
    _, k, v = smooth_qkv(layout, batch=2)
    tables = build_tables(layout)
    tail = make_tail(k, v, tables, name)
    if name == "none":
        assert tail is None
        return
    assert tail is not None
    blocks = blocks_of(tables, "k")[: tables.k.video]
    counts = torch.tensor([len(block) for block in blocks], dtype=k.dtype)
    for j, block in enumerate(blocks):
        torch.testing.assert_close(tail.k_mean[:, :, j], k[:, :, block].mean(2), rtol=0, atol=1e-14)
        torch.testing.assert_close(tail.v_mean[:, :, j], v[:, :, block].mean(2), rtol=0, atol=1e-14)
    torch.testing.assert_close(tail.log_weight, counts.log().expand(2, -1), rtol=0, atol=1e-14)
    if name == "mean":
        assert tail.cov is None and tail.u is None
        return
    # Ranks plus what the average holds give back every block's share of C exactly, whatever pairs were found.
    exact = covariances(k, v, layout)
    assert tail.cov is not None and tail.ranks == int(name[-1])
    left = exact if tail.u is None or tail.w is None else exact - from_pairs(tail.u, tail.w)
    average = torch.einsum("bhgde,g->bhde", left, counts) / counts.sum()
    torch.testing.assert_close(tail.cov, average, rtol=0, atol=1e-13)


@pytest.mark.parametrize("spectrum", ["structured", "flat"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("size", [16, 64])
def test_singular_pairs_hold_nearly_what_the_svd_holds(spectrum: str, ranks: int, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    keys, values = (torch.randn(200, size, 32, generator=generator) for _ in range(2))
    if spectrum == "structured":
        # What tokens of one patch look like: few directions hold most of the variation, in keys and values alike.
        waves = torch.randn(200, size, 4, generator=generator) * torch.tensor([3.0, 2.0, 1.4, 1.0])
        keys, values = (0.3 * x + waves @ torch.randn(200, 4, 32, generator=generator) for x in (keys, values))
    keys, values = (x - x.mean(1, keepdim=True) for x in (keys, values))
    counts = torch.full((200,), float(size))
    u, w = singular_pairs(keys, values, counts, ranks)
    exact = torch.matmul(keys.mT, values).double() / size
    squares = torch.linalg.svdvals(exact).square()
    held = squares.sum(-1) - (exact - from_pairs(u, w).double()).square().sum((1, 2))
    share = held / squares[:, :ranks].sum(-1)
    identity = torch.matmul(u, u.mT)
    assert float((identity - torch.eye(ranks)).abs().max()) < 1e-5
    assert float(share.max()) <= 1 + 1e-5
    # A flat spectrum, the hardest case, has no leading pair to miss: some direction nearly as good is found.
    mean, least = (0.9999, 0.999) if spectrum == "structured" else (0.93, 0.65)
    assert float(share.mean()) >= mean
    assert float(share.min()) >= least


@pytest.mark.parametrize("size", [8, 32])
def test_singular_pairs_are_the_same_from_the_products_of_keys_and_values(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    keys, values = (torch.randn(20, size, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    counts = torch.full((20,), float(size))
    found = singular_pairs(keys, values, counts, 2, torch.matmul(keys.mT, values))
    torch.testing.assert_close(found, singular_pairs(keys, values, counts, 2), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_block_of_low_rank_is_found_exactly(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    mix = torch.randn(50, 32, rank, generator=generator, dtype=torch.float64)
    keys, values = (mix @ torch.randn(50, rank, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    u, w = singular_pairs(keys, values, torch.full((50,), 32.0, dtype=torch.float64), 2)
    exact = torch.matmul(keys.mT, values) / 32
    if rank <= 2:
        torch.testing.assert_close(from_pairs(u, w), exact, rtol=0, atol=1e-10)
        assert ((u.norm(dim=-1) > 0.5).sum(-1) >= rank).all()
    else:
        best = torch.linalg.svd(exact)
        expected = (best.U[..., :2] * best.S[:, None, :2]) @ best.Vh[:, :2]
        assert relative(from_pairs(u, w), expected) < 0.02


@pytest.mark.parametrize("name", ["linear1", "linear2"])
def test_blocks_without_spread_add_nothing(name: TailName) -> None:
    layout = small_layout((4, 4, 8))
    tables = build_tables(layout)
    _, k, v = smooth_qkv(layout)
    for block in blocks_of(tables, "k"):
        k[:, :, block] = k[:, :, block[:1]].clone()
    tail = make_tail(k, v, tables, name)
    assert tail is not None and tail.cov is not None and tail.u is not None and tail.w is not None
    assert float(from_pairs(tail.u, tail.w).abs().max()) < 1e-12
    assert float(tail.cov.abs().max()) < 1e-12


def test_more_ranks_than_tokens() -> None:
    # 1x1x3 tokens in blocks of 2 and 1: a block of one token has no deviation, of two tokens one direction.
    layout = Layout(small_layout((1, 1, 3)).grid, q_block=2, k_block=2, tile=(1, 1, 2))
    _, k, v = smooth_qkv(layout)
    tail = make_tail(k, v, build_tables(layout), "linear2")
    assert tail is not None and tail.u is not None and tail.w is not None
    torch.testing.assert_close(from_pairs(tail.u, tail.w), covariances(k, v, layout), rtol=0, atol=1e-12)


def test_heads_with_different_tails_share_a_table() -> None:
    layout = small_layout((4, 5, 8))
    tables = build_tables(layout)
    _, k, v = smooth_qkv(layout, heads=5)
    mixed = make_tail(k, v, tables, TAILS)
    assert mixed is not None and mixed.cov is not None and mixed.u is not None and mixed.w is not None
    assert mixed.ranks == 2
    for head, name in enumerate(TAILS):
        part = slice(head, head + 1)
        alone = make_tail(k[:, part], v[:, part], tables, name)
        if alone is None:
            assert (mixed.log_weight[head] == -torch.inf).all()
            continue
        assert torch.equal(mixed.log_weight[part], alone.log_weight)
        assert torch.equal(mixed.v_mean[:, part], alone.v_mean)
        if alone.cov is None:
            assert not mixed.cov[:, head].any()
        if alone.u is None:
            assert not mixed.u[:, head].any()
        else:
            assert not mixed.u[:, head, :, alone.ranks :].any()
            ranks = alone.ranks
            both = from_pairs(mixed.u[:, part, :, :ranks], mixed.w[:, part, :, :ranks])
            assert alone.w is not None and relative(both, from_pairs(alone.u, alone.w)) < 0.05


def test_one_set_of_statistics_gives_every_tail() -> None:
    layout = small_layout((4, 5, 8))
    tables = build_tables(layout)
    _, k, v = smooth_qkv(layout)
    expansion = expand_blocks(k, v, tables, TAILS)
    for name in TAILS:
        shared, alone = tail_from(expansion, name), make_tail(k, v, tables, name)
        assert (shared is None) == (alone is None)
        if shared is None or alone is None:
            continue
        assert shared.ranks == alone.ranks
        assert (shared.cov is None) == (alone.cov is None)
        if shared.cov is not None and alone.cov is not None and not shared.ranks:
            torch.testing.assert_close(shared.cov, alone.cov, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["mean", "linear2"])
def test_half_precision_inputs_keep_float32_statistics(name: TailName) -> None:
    layout = small_layout((4, 5, 8))
    tables = build_tables(layout)
    _, k, v = smooth_qkv(layout, dtype=torch.bfloat16)
    tail = make_tail(k, v, tables, name)
    exact = make_tail(k.double(), v.double(), tables, name)
    assert tail is not None and exact is not None
    assert tail.k_mean.dtype == tail.v_mean.dtype == tail.log_weight.dtype == torch.float32
    assert relative(tail.v_mean, exact.v_mean) < 1e-6
    if tail.cov is not None and exact.cov is not None and tail.u is not None and tail.w is not None:
        assert tail.cov.dtype == tail.u.dtype == tail.w.dtype == torch.float32
        assert relative(from_pairs(tail.u, tail.w), from_pairs(exact.u, exact.w)) < 1e-3  # type: ignore[arg-type]


def test_a_wrong_number_of_tails_is_refused() -> None:
    layout = small_layout()
    _, k, v = smooth_qkv(layout)
    with pytest.raises(ValueError, match="3 tails for 2 heads"):
        make_tail(k, v, build_tables(layout), ("mean", "mean", "none"))


def test_what_a_tail_costs_in_keys() -> None:
    assert tail_key_equivalents("none", 100, 64) == 0
    assert tail_key_equivalents("mean", 100, 64) == 100
    assert tail_key_equivalents("linear0", 100, 64) == 132
    assert tail_key_equivalents("linear2", 100, 64) == 332
