"""Coarse maps of a run: what they hold, what they leave out, and that both are bounded."""

from __future__ import annotations

import pytest
import torch

from draftattention.draftattn_core import Layout, Policy, Position, TokenGrid, attend
from draftattention.draftattn_core.attention import Attention
from draftattention.draftattn_core.run.capture import capture
from draftattention.draftattn_core.run.coarse_maps import (
    LOWEST,
    MAX_LAYERS,
    MAX_STEPS,
    CoarseMaps,
    coarse_map,
    from_levels,
    to_levels,
)
from draftattention.draftattn_core.run.events import CallDone

LAYOUT = Layout(TokenGrid(3, 5, 7), extra_before=4, extra_after=3, q_block=16, k_block=8)
HERE = Position(step=2, progress=0.3, layer=1, layers=6)


@pytest.fixture
def call() -> Attention:
    q, k, v = (3 * torch.randn(2, 3, LAYOUT.tokens, 8) for _ in range(3))
    return attend(q, k, v, LAYOUT, Policy(0.3))


def test_levels_give_shares_back_within_three_percent_over_four_decades() -> None:
    share = (3 * torch.randn(50, 30)).softmax(-1)
    levels = to_levels(share)
    large = share > 2 * LOWEST * share.amax(-1, keepdim=True)
    assert large.float().mean() > 0.6
    assert torch.allclose(from_levels(levels)[large], share[large], rtol=0.03)
    tiny = share < 0.5 * LOWEST * share.amax(-1, keepdim=True)
    assert tiny.any() and not levels[tiny].any() and levels[large].min() > 0
    assert torch.equal(levels.argmax(-1), share.argmax(-1))


def test_a_small_call_is_kept_whole(call: Attention) -> None:
    whole, coarse = capture(call, HERE), coarse_map(call, HERE)
    assert coarse.merged == 1 and coarse.rows.tolist() == list(range(whole.keep.shape[1]))
    assert torch.equal(coarse.kept == 255, whole.keep) and set(coarse.kept.unique().tolist()) <= {0, 255}
    assert torch.allclose(from_levels(coarse.draft), whole.draft.float(), rtol=0.03, atol=2e-3)


def test_rows_are_thinned_out_and_the_shares_of_merged_key_blocks_added(call: Attention) -> None:
    whole = capture(call, HERE)
    rows, columns = whole.keep.shape[1:]
    coarse = coarse_map(call, HERE, max_rows=3, max_bytes=2 * 3 * 3 * 5)
    assert (rows, columns) == (7, 14) and coarse.rows.tolist() == [1, 4] and coarse.merged == 2
    for row, block in enumerate([1, 4]):
        for head in range(3):
            shares = [whole.draft[head, block, at : at + 2].float().sum() for at in range(0, columns, 2)]
            found = from_levels(coarse.draft[head, row])
            assert torch.allclose(found, torch.stack(shares), rtol=0.03, atol=2e-3)
            kept = [whole.keep[head, block, at : at + 2].float().mean() for at in range(0, columns, 2)]
            assert (coarse.kept[head, row] / 255).tolist() == pytest.approx([float(one) for one in kept], abs=2e-3)


def test_the_last_column_may_hold_fewer_blocks_and_its_share_is_of_those(call: Attention) -> None:
    coarse = coarse_map(call, HERE, max_rows=3, max_bytes=2 * 3 * 2 * 4)
    whole = capture(call, HERE)
    assert coarse.merged == 4 and coarse.kept.shape[-1] == 4
    assert float(coarse.kept[0, 0, -1]) / 255 == pytest.approx(float(whole.keep[0, 1, 12:].float().mean()), abs=2e-3)


def test_no_bound_is_too_small(call: Attention) -> None:
    coarse = coarse_map(call, HERE, max_rows=1, max_bytes=1)
    assert coarse.rows.tolist() == [3] and coarse.draft.tolist() == [[[255]]] * 3


def steps_kept(call: Attention, steps: range, layers: int = 3, layer: int = 0) -> CoarseMaps:
    maps = CoarseMaps(layer)
    for step in steps:
        for at in range(layers):
            maps(CallDone(Position(step, 0.0, at, layers, "cond"), call))
            maps(CallDone(Position(step, 0.0, at, layers, "uncond"), call))
    return maps


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (range(3), [0, 1, 2]),
        (range(2, 7), [2, 3, 4, 5, 6]),
        (range(6), [0, 2, 4]),
        (range(4, 20), [4, 8, 12, 16]),
        (range(50), [0, 16, 32, 48]),
    ],
)
def test_steps_are_evenly_spread_however_long_the_run_is(call: Attention, steps: range, expected: list[int]) -> None:
    maps = steps_kept(call, steps)
    assert sorted({step for step, _ in maps.kept}) == expected and len(expected) <= MAX_STEPS
    assert len(maps.kept) == 3 * len(expected), "every step has the same layers"
    assert {taken.position.branch for taken in maps.kept.values()} == {"cond"}


def test_layers_are_evenly_spread_and_the_wanted_one_is_among_them(call: Attention) -> None:
    found = {layer: {at for _, at in steps_kept(call, range(1), 30, layer).kept} for layer in (0, -3, 12, 99)}
    assert found == {0: {0, 7, 14, 22, 29}, -3: {0, 7, 14, 27, 29}, 12: {0, 7, 12, 22, 29}, 99: {0, 7, 14, 22, 29}}
    assert all(len(layers) <= MAX_LAYERS for layers in found.values())


def test_a_new_run_begins_anew(call: Attention) -> None:
    maps = steps_kept(call, range(10))
    maps.clear()
    assert not maps.kept
    maps(CallDone(Position(3, 0.0, 0, 3), call))
    assert list(maps.kept) == [(3, 0)]
