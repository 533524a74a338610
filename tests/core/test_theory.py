"""The theory, as statements that hold for every input or orders that can be measured (design.md 1, methods.md 2.6)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.blocks import block_means
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.draft import draft_logits, make_draft
from draftattention.draftattn_core.method.policy import Policy, TailName
from draftattention.draftattn_core.method.tail.expand import make_tail
from draftattention.kernels.types import Tail
from tests.core.cases import blocks_of, make_request, relative, small_layout, smooth_qkv

LAYOUT = small_layout((4, 5, 7))


def dense(request: AttendRequest) -> Tensor:
    return attend_reference(replace(request, keep=torch.ones_like(request.keep), tail=None))


def in_block_order(q: Tensor, k: Tensor, layout: Layout, scale: float) -> Tensor:
    """All logits (B, H, L, L), rows and columns in block order."""
    perm = build_tables(layout).perm
    return scale * torch.matmul(q[:, :, perm], k[:, :, perm].transpose(-1, -2))


def block_constant(x: Tensor, layout: Layout) -> Tensor:
    """A map over block pairs (..., R, C) spread over the tokens of the blocks."""
    tables = build_tables(layout)
    return x[..., tables.q.of_token, :][..., tables.k.of_token]


def pooled_logits(q: Tensor, k: Tensor, layout: Layout, scale: float) -> Tensor:
    """The plain draft: logits of block means, without what counts and spread add."""
    tables = build_tables(layout)
    return scale * torch.matmul(
        block_means(q, tables.perm, tables.q), block_means(k, tables.perm, tables.k).transpose(-1, -2)
    )


def test_the_draft_is_the_mean_of_the_logits_over_each_block_pair() -> None:
    q, k, _ = smooth_qkv(LAYOUT)
    tables = build_tables(LAYOUT)
    logits = in_block_order(q, k, LAYOUT, 0.25)
    draft = draft_logits(make_draft(q, k, tables, spread=False), tables, 0.25) - tables.k.counts.double().log()
    for i in range(tables.q.total):
        for j in range(tables.k.total):
            rows, columns = (slice(t.bounds[x], t.bounds[x + 1]) for t, x in ((tables.q, i), (tables.k, j)))
            torch.testing.assert_close(draft[:, :, i, j], logits[:, :, rows, columns].mean((2, 3)), rtol=0, atol=1e-13)


def test_so_it_is_the_best_block_constant_approximation_of_the_logits() -> None:
    q, k, _ = smooth_qkv(LAYOUT)
    logits = in_block_order(q, k, LAYOUT, 1.0)
    draft = pooled_logits(q, k, LAYOUT, 1.0)
    best = (logits - block_constant(draft, LAYOUT)).square().sum((2, 3))
    for _ in range(20):
        other = block_constant(draft + 0.1 * torch.randn_like(draft), LAYOUT)
        assert ((logits - other).square().sum((2, 3)) > best).all()


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.4])
def test_a_block_weighs_at_least_what_its_mean_says_and_half_the_variance_more(spread: float) -> None:
    # Jensen: log sum exp(logits) >= log n + mean logit; the gap is half the variance of the logits, to third order.
    q, k, _ = smooth_qkv(LAYOUT, noise=1.0)
    tables = build_tables(LAYOUT)
    for block in blocks_of(tables, "k"):
        logits = torch.matmul(q, k[:, :, block].transpose(-1, -2))
        logits = spread * logits / logits.std(-1, keepdim=True, correction=0)
        gap = logits.logsumexp(-1) - math.log(len(block)) - logits.mean(-1)
        assert (gap >= 0).all()
        torch.testing.assert_close(gap, torch.full_like(gap, spread**2 / 2), rtol=1.5 * spread, atol=0)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.6])
def test_without_a_tail_the_error_is_at_most_twice_the_dropped_mass_times_the_largest_value(density: float) -> None:
    q, k, v = smooth_qkv(LAYOUT, batch=2)
    request = make_request(3 * q, k, v, LAYOUT, Policy(density=density, tail="none"))
    tables = request.tables
    kept = request.keep[:, :, tables.q.of_token[tables.inverse]][..., tables.k.of_token[tables.inverse]]
    mass = (torch.matmul(request.q, k.transpose(-1, -2)) * request.scale).softmax(-1)
    dropped = (mass * ~kept).sum(-1)
    error = (attend_reference(request) - dense(request)).norm(dim=-1)
    bound = 2 * dropped * v.norm(dim=-1).amax(-1, keepdim=True)
    assert (error <= bound + 1e-12).all()
    assert (error > 0.02 * bound).any()


def constant_in_blocks(x: Tensor, layout: Layout) -> Tensor:
    x = x.clone()
    for block in blocks_of(build_tables(layout), "k"):
        x[:, :, block] = x[:, :, block].mean(2, keepdim=True)
    return x


@pytest.mark.parametrize("tail", ["mean", "linear0", "linear2"])
def test_where_keys_are_constant_inside_blocks_every_tail_is_exact(tail: TailName) -> None:
    q, k, v = smooth_qkv(LAYOUT)
    request = make_request(3 * q, constant_in_blocks(k, LAYOUT), v, LAYOUT, Policy(density=0.2, tail=tail))
    assert relative(attend_reference(request), dense(request)) < 1e-13


def full_tail(k: Tensor, v: Tensor, layout: Layout) -> Tail:
    """The linear tail with each block's whole C_j: too dear to compute with, and what the ranks approximate."""
    tables = build_tables(layout)
    tail = make_tail(k, v, tables, "linear0")
    assert tail is not None
    pairs = []
    for block in blocks_of(tables, "k"):
        keys, values = (x[:, :, block] - x[:, :, block].mean(2, keepdim=True) for x in (k, v))
        u, s, vh = torch.linalg.svd(torch.matmul(keys.transpose(-1, -2), values) / len(block))
        pairs.append((u.transpose(-1, -2), s.unsqueeze(-1) * vh))
    u, w = (torch.stack(side, dim=2) for side in zip(*pairs, strict=True))
    return Tail(tail.log_weight, tail.k_mean, tail.v_mean, torch.zeros_like(tail.cov), u, w)  # type: ignore[arg-type]


FACTORS = [0.2 * 0.5**i for i in range(5)]


def shrinking_errors(tail: str, *, values_constant: bool = False) -> list[float]:
    """Relative error of a tail as the deviations of the keys from their block means shrink by each of `FACTORS`."""
    q, k, v = smooth_qkv(LAYOUT)
    centre = constant_in_blocks(k, LAYOUT)
    if values_constant:
        v = constant_in_blocks(v, LAYOUT)
    errors = []
    for a in FACTORS:
        keys = centre + a * (k - centre)
        request = make_request(q, keys, v, LAYOUT, Policy(density=0.2, tail="mean", spread=False))
        found = full_tail(keys, v, LAYOUT) if tail == "full" else make_tail(keys, v, request.tables, tail)  # type: ignore[arg-type]
        # The same selection for every a: only the expansion is measured.
        keep = make_request(q, k, v, LAYOUT, Policy(density=0.2)).keep
        request = replace(request, tail=found, keep=keep)
        errors.append(relative(attend_reference(request), dense(request)))
    return errors


def slope(errors: list[float]) -> float:
    """d log(error) / d log(factor), by least squares."""
    x, y = torch.tensor(FACTORS).log(), torch.tensor(errors).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())


def test_the_error_of_the_mean_tail_is_of_first_order_in_the_spread_of_keys() -> None:
    assert slope(shrinking_errors("mean")) == pytest.approx(1.0, abs=0.03)


def test_the_error_of_the_full_linear_tail_is_of_second_order() -> None:
    assert slope(shrinking_errors("full")) == pytest.approx(2.0, abs=0.05)


def test_the_average_and_the_ranks_are_of_first_order_with_ever_smaller_constants() -> None:
    errors = {name: shrinking_errors(name) for name in ("mean", "linear0", "linear1", "linear2", "full")}
    for name in ("linear0", "linear1", "linear2"):
        assert slope(errors[name]) == pytest.approx(1.0, abs=0.05)
    for worse, better in zip(list(errors.values())[:-1], list(errors.values())[1:]):
        assert all(b < 0.95 * a for a, b in zip(worse, better))


def test_the_mean_tail_is_of_second_order_where_values_do_not_vary_with_keys() -> None:
    assert slope(shrinking_errors("mean", values_constant=True)) == pytest.approx(2.0, abs=0.05)


def test_theorem_3_5_as_published_fails_and_holds_once_corrected() -> None:
    """arXiv 2505.14708, Theorem 3.5: ||S - S * mask||_F <= n (delta + t) sqrt(1 - r), t the smallest kept draft logit.

    The proof needs |draft| <= t on what is dropped, but dropped logits may be very negative. With t replaced by the
    largest |draft| among the dropped blocks the statement holds. (It says nothing about attention itself: there a
    dropped logit becomes -inf, not 0.)
    """
    layout = small_layout((4, 4, 4), q_block=8, k_block=8)
    q, k, _ = smooth_qkv(layout, heads=1, dim=32)
    # Queries and keys shifted in opposite directions: every logit is far below zero.
    q, k = q + 3, k - 3
    logits, draft = in_block_order(q, k, layout, 1.0)[0, 0], pooled_logits(q, k, layout, 1.0)[0, 0]
    spread = block_constant(draft, layout)
    kept = draft >= draft.flatten().sort(descending=True).values[int(0.4 * draft.numel()) - 1]
    share, n = float(kept.double().mean()), logits.shape[0]
    delta = float((logits - spread).abs().max())
    left = float((logits * ~block_constant(kept, layout)).norm())

    published = n * (delta + float(draft[kept].min())) * math.sqrt(1 - share)
    corrected = n * (delta + float(draft[~kept].abs().max())) * math.sqrt(1 - share)
    assert left > published
    assert published < 0  # a bound on a norm
    assert left <= corrected


@pytest.mark.parametrize("seed", range(10))
def test_the_corrected_theorem_3_5_holds_for_random_inputs(seed: int) -> None:
    layout = small_layout((4, 4, 4), q_block=8, k_block=8)
    q, k, _ = smooth_qkv(layout, heads=1, dim=32, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    q, k = (x + torch.randn(32, generator=generator, dtype=x.dtype) for x in (q, k))
    logits, draft = in_block_order(q, k, layout, 1.0)[0, 0], pooled_logits(q, k, layout, 1.0)[0, 0]
    delta = float((logits - block_constant(draft, layout)).abs().max())
    # Theorem 3.3: ||S - S_draft||_F <= delta n.
    assert float((logits - block_constant(draft, layout)).norm()) <= delta * logits.shape[0]
    for share in (0.1, 0.4, 0.8):
        kept = draft >= draft.flatten().sort(descending=True).values[int(share * draft.numel()) - 1]
        left = float((logits * ~block_constant(kept, layout)).norm())
        room = math.sqrt(1 - float(kept.double().mean()))
        assert left <= logits.shape[0] * (delta + float(draft[~kept].abs().max())) * room
