"""Repetition heads: which they are, the anchors, and outputs copied token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.calibatt.repetition import (
    anchor_rows,
    anchor_tokens,
    anchor_work,
    attend_anchors,
    repetition_heads,
)
from draftattention.draftattn_core.method.rules.call import RuleCall
from tests.core.rule_cases import coordinates, layout_of, rule_call, some_bias, whole_logits

LAYOUTS = {
    "raster": layout_of((3, 5, 7)),
    "extra tokens on both sides": layout_of((2, 7, 3), 5, 12),
    "tiles": layout_of((2, 6, 5), 0, 9, order="tile"),
    "one column": layout_of((2, 4, 1), 1, 0),
}


def call_of(layout: Layout) -> RuleCall:
    return rule_call(layout, key_bias=some_bias(layout) if layout.extra else None)


def video_rows(layout: Layout, frame: int, row: int) -> list[int]:
    """Host tokens of one spatial row."""
    grid = layout.grid
    return [layout.extra_before + (frame * grid.h + row) * grid.w + w for w in range(grid.w)]


def test_a_head_repeats_if_its_mean_over_prompts_is_above_gamma() -> None:
    similarity = torch.tensor([[0.90, 0.80, 0.87], [0.86, 0.96, 0.87]], dtype=torch.float64)
    assert repetition_heads(similarity) == (True, True, False)
    assert repetition_heads(similarity, gamma=0.879) == (True, True, False)
    assert repetition_heads(similarity, gamma=0.89) == (False, False, False)


@pytest.mark.parametrize("rows", [1, 4, 5, 6, 11, 30, 45])
def test_anchors_are_as_near_as_five_rows_can_be(rows: int) -> None:
    anchors = anchor_rows(rows)
    assert len(anchors) == min(rows, 5) and len(set(anchors)) == len(anchors)
    farthest = max(min(abs(i - a) for a in anchors) for i in range(rows))
    # Five rows with `far` others on either side cover no more than 5 (2 far + 1).
    assert 5 * (2 * (farthest - 1) + 1) < rows or farthest == 0


def test_no_anchor_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one anchor"):
        anchor_rows(4, 0)


def nearest(row: int, anchors: tuple[int, ...]) -> int:
    return min(anchors, key=lambda anchor: (abs(anchor - row), anchor))


@pytest.mark.parametrize("anchors", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_row_takes_the_dense_output_of_its_nearest_anchor_and_text_is_dense(layout: Layout, anchors: int) -> None:
    call = call_of(layout)
    dense: Tensor = whole_logits(call).softmax(-1) @ call.v
    expected, grid, before = dense.clone(), layout.grid, layout.extra_before
    rows = anchor_rows(grid.h, anchors)
    for token in range(grid.tokens):
        frame, row, column = coordinates(layout, token)
        source = (frame * grid.h + nearest(row, rows)) * grid.w + column
        expected[:, :, before + token] = dense[:, :, before + source]
    found = attend_anchors(call.q, call.k, call.v, call.tables, call.scale, key_bias=call.key_bias, anchors=anchors)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_only_anchor_rows_and_extra_tokens_are_computed(layout: Layout) -> None:
    call = call_of(layout)
    computed = anchor_tokens(call.tables, 2).computed.tolist()
    wanted = {t for t in range(layout.tokens) if not 0 <= t - layout.extra_before < layout.grid.tokens}
    for frame in range(layout.grid.t):
        for row in anchor_rows(layout.grid.h, 2):
            wanted |= set(video_rows(layout, frame, row))
    assert computed == sorted(wanted)
    assert anchor_work(call.tables, 2) == pytest.approx(len(computed) / layout.tokens)
