"""Sparse VideoGen: masks, classification and reordered heads against loops over tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules import svg
from draftattention.draftattn_core.method.rules.call import HeadOrder, RuleCall
from tests.core.rule_cases import Place, coordinates, layout_of, rule_call, some_bias, whole_logits

LAYOUTS = {
    "raster": layout_of((3, 5, 7)),
    "extra tokens on both sides": layout_of((4, 3, 5), 5, 12),
    "one frame": layout_of((1, 5, 7), 0, 3),
    "small query blocks": layout_of((3, 5, 7), 2, 0, q_block=8, k_block=16),
}


def position(layout: Layout, token: int, temporal: bool) -> int:
    """Place of a video token in the order of its head."""
    frame, row, column = coordinates(layout, token)
    place = row * layout.grid.w + column
    return place * layout.grid.t + frame if temporal else frame * layout.grid.frame_tokens + place


def seen(layout: Layout, width: int, temporal: bool) -> Tensor:
    """(L, L) bool in the host's order: what the blocks of the band let each token see, token by token."""
    grid, before, tokens = layout.grid, layout.extra_before, layout.grid.tokens

    def span(block: int, size: int) -> range:
        return range(block * size, min((block + 1) * size, tokens))

    mask = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool)
    for i in range(tokens):
        queries = span(position(layout, i, temporal) // layout.q_block, layout.q_block)
        for j in range(tokens):
            keys = span(position(layout, j, temporal) // layout.k_block, layout.k_block)
            near = any(abs(a - b) <= width for a in queries for b in keys)
            mask[before + i, before + j] = near or keys[0] < grid.frame_tokens
    return mask


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_heads_are_computed_in_their_own_order_and_come_back(layout: Layout) -> None:
    call = rule_call(layout, Policy(density=(0.1, 0.3, 0.6)), key_bias=some_bias(layout) if layout.extra else None)
    moved = torch.tensor([[False, True, True], [True, True, False]])
    order = HeadOrder(svg.place_major_order(call.tables), moved)
    keep = svg.select(call)
    q, k, v = (order.before(x) for x in (call.q, call.k, call.v))
    request = AttendRequest(q, k, v, call.tables, keep, None, call.key_bias, call.scale)
    found = order.after(attend_reference(request))

    logits = whole_logits(call)
    for head, density in enumerate((0.1, 0.3, 0.6)):
        width = svg.band_width(density, call.tables)
        for b in range(2):
            mask = seen(layout, width, bool(moved[b, head]))
            expected = logits[b, head].masked_fill(~mask, -torch.inf).softmax(-1) @ call.v[b, head]
            torch.testing.assert_close(found[b, head], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_moving_tokens_there_and_back_changes_nothing(layout: Layout) -> None:
    call = rule_call(layout)
    order = HeadOrder(svg.place_major_order(call.tables), torch.tensor([[True, False, True]] * 2))
    assert torch.equal(order.after(order.before(call.q)), call.q)
    if layout.grid.t > 1:
        assert not torch.equal(order.before(call.q), call.q)


def test_the_width_follows_the_published_formula_rounded_up_to_blocks() -> None:
    tables = build_tables(layout_of((3, 5, 7), 4, 6))
    for density in (0.2, 0.3, 0.55, 1.0):
        share = density - 2 * 10 / 115
        tokens = 115 * (1 - math.sqrt(1 - share))
        assert svg.band_width(density, tables) == math.ceil(tokens / 8) * 8
    assert svg.band_width(0.05, tables) == 0
    assert svg.band(tables, svg.band_width(1.0, build_tables(layout_of()))).all()


def test_an_order_that_mixes_frames_is_refused() -> None:
    call = rule_call(layout_of(order="tile"))
    for what in (svg.select, svg.head_order):
        with pytest.raises(ValueError, match="order='raster'"):
            what(call)


LARGE = layout_of((6, 10, 14), 3, 5, q_block=16, k_block=16)  # 140 places: two blocks of 128 are near


def brute_force_profile(layout: Layout, row: int, temporal: bool) -> Tensor:
    """(L,) bool: what one video token would see as a head of that kind."""
    grid, before = layout.grid, layout.extra_before
    mask = torch.ones(layout.tokens, dtype=torch.bool)
    at = position(layout, row, temporal)
    for j in range(grid.tokens):
        there = position(layout, j, temporal)
        near = abs(at // 128 - there // 128) < max(1, 2 * grid.frame_tokens // 128)
        mask[before + j] = near or there < grid.frame_tokens
    return mask


@pytest.mark.parametrize("temporal", [False, True])
def test_profile_masks_are_blocks_of_the_heads_own_order(temporal: bool) -> None:
    rows = torch.tensor([0, 77, 139, 140, 500, 839])
    found = svg.profile_masks(build_tables(LARGE), rows)[temporal]
    for row, mask in zip(rows.tolist(), found):
        assert torch.equal(mask, brute_force_profile(LARGE, row, temporal))
    assert not found.all()


def test_a_head_is_temporal_if_that_mask_comes_closer_on_the_sampled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    call = rule_call(LARGE, key_bias=some_bias(LARGE), noise=0.2)
    # Heads of their own: one looks along time, one within the frame, one at nothing in particular.
    frame, place = torch.arange(840) // 140, torch.arange(840) % 140
    for head, label in enumerate((place, frame)):
        code = torch.randn(140, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64)[label] * 2
        call.q[:, head, 3:843] = call.k[:, head, 3:843] = code
    rows = torch.arange(5, 840, 13)
    found = svg.profile_errors(call.q, call.k, call.v, call.tables, call.scale, rows, call.key_bias)
    logits = whole_logits(call)[:, :, rows + 3]
    full = logits.softmax(-1) @ call.v
    for temporal in (False, True):
        masks = torch.stack([brute_force_profile(LARGE, int(row), temporal) for row in rows])
        out = logits.masked_fill(~masks, -torch.inf).softmax(-1) @ call.v
        torch.testing.assert_close(found[int(temporal)], (out - full).square().mean((2, 3)), rtol=1e-10, atol=0)
    monkeypatch.setattr(svg, "sampled_rows", lambda call: rows)
    moved = svg.head_order(call).moved
    assert torch.equal(moved, found[1] < found[0])
    assert moved[:, :2].tolist() == [[True, False]] * 2


def test_rows_are_the_same_for_the_same_place_in_a_run_and_others_elsewhere() -> None:
    call = rule_call(LARGE, heads=1, batch=1)
    first = svg.sampled_rows(replace(call, position=Place(3, 0.2, 1)))
    assert torch.equal(first, svg.sampled_rows(replace(call, position=Place(3, 0.2, 1))))
    assert len(first) == 64 and first.min() >= 0 and first.max() < 840
    for other in (Place(4, 0.2, 1), Place(3, 0.2, 2)):
        assert not torch.equal(first, svg.sampled_rows(replace(call, position=other)))


def test_the_call_without_a_position_is_classified_too() -> None:
    call: RuleCall = rule_call(layout_of((3, 5, 7), 2, 3))
    order = svg.head_order(call)
    assert order.moved.shape == (2, 3)
    # 105 tokens lie in one block of 128: both masks see all, and a tie makes a spatial head.
    assert not order.moved.any()
