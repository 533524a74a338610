"""What calibration asks of a call: energies and likeness of rows from one softmax map, against loops over it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.calibatt.survey import Survey, row_similarity, survey
from draftattention.draftattn_core.method.rules.call import RuleCall
from tests.core.cases import blocks_of
from tests.core.rule_cases import layout_of, rule_call, some_bias, whole_logits

LAYOUTS = {
    "raster": layout_of((3, 5, 7)),
    "extra tokens on both sides": layout_of((2, 7, 3), 5, 12),
    "tiles": layout_of((2, 6, 5), 0, 9, order="tile"),
    "small query blocks": layout_of((2, 3, 9), 3, 0, q_block=8, k_block=16),
    "one column": layout_of((2, 4, 1), 1, 0),
    "one row": layout_of((3, 1, 9), 0, 2),
}
CHUNKS = [None, 1, 9_000, 60_000]


def call_of(layout: Layout) -> RuleCall:
    return rule_call(layout, key_bias=some_bias(layout) if layout.extra else None)


def survey_of(call: RuleCall, chunk_bytes: int | None = None) -> Survey:
    return survey(call.q, call.k, call.tables, call.scale, key_bias=call.key_bias, chunk_bytes=chunk_bytes)


def similarity_of(call: RuleCall, chunk_bytes: int | None = None) -> Tensor:
    return row_similarity(call.q, call.k, call.tables, call.scale, key_bias=call.key_bias, chunk_bytes=chunk_bytes)


def video_rows(layout: Layout, frame: int, row: int) -> list[int]:
    """Host tokens of one spatial row."""
    grid = layout.grid
    return [layout.extra_before + (frame * grid.h + row) * grid.w + w for w in range(grid.w)]


def block_sums(call: RuleCall) -> Tensor:
    """Mean mass of every video query block in every key block, pair by pair."""
    probabilities, tables = whole_logits(call).softmax(-1), call.tables
    queries, keys = blocks_of(tables, "q")[: tables.q.video], blocks_of(tables, "k")
    pairs = [[probabilities[:, :, r][..., c].sum((2, 3)) / len(r) for c in keys] for r in queries]
    return torch.stack([torch.stack(row, -1) for row in pairs], -2)


def mean_cosine(call: RuleCall) -> Tensor:
    """Mean cosine of the flattened patterns of two rows of a frame, pair by pair; 0 without a pair."""
    probabilities, layout = whole_logits(call).softmax(-1), call.tables.layout
    found = []
    for frame in range(layout.grid.t):
        patterns = [probabilities[:, :, video_rows(layout, frame, i)].flatten(2) for i in range(layout.grid.h)]
        for i, one in enumerate(patterns):
            found += [torch.nn.functional.cosine_similarity(one, other, dim=-1) for other in patterns[:i]]
    return torch.stack(found).mean(0) if found else torch.zeros(call.q.shape[:2], dtype=torch.float64)


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_energies_are_the_block_sums_of_the_whole_softmax(layout: Layout, chunk_bytes: int | None) -> None:
    call = call_of(layout)
    torch.testing.assert_close(survey_of(call, chunk_bytes).energy, block_sums(call), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_similarity_is_the_mean_cosine_of_flattened_patterns(layout: Layout, chunk_bytes: int | None) -> None:
    call = call_of(layout)
    expected = mean_cosine(call)
    torch.testing.assert_close(survey_of(call, chunk_bytes).similarity, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(similarity_of(call, chunk_bytes), expected, rtol=1e-12, atol=0)


def test_rows_that_are_alike_have_similarity_one() -> None:
    call = call_of(layout_of((2, 5, 4)))
    video = call.q.view(2, 3, 2, 5, 4, -1)
    call = replace(call, q=video[:, :, :, :1].expand_as(video).reshape(call.q.shape))
    for found in (survey_of(call).similarity, similarity_of(call)):
        torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-12, atol=0)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    call = rule_call(layout_of((3, 5, 7)), dtype=torch.float32)
    call.q.mul_(300)
    found = survey_of(call)
    assert found.energy.dtype == found.similarity.dtype == torch.float32
    torch.testing.assert_close(found.energy.double(), block_sums(call), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.similarity.double(), mean_cosine(call), rtol=0, atol=1e-3)


def test_the_map_is_made_once_for_both() -> None:
    """The products of the survey are q k of a dense call and, among the rows of each frame, the patterns' own."""
    call = rule_call(layout_of((3, 5, 7)), batch=1, heads=2)
    grid, slots = call.tables.layout.grid, call.tables.k.total * call.tables.k.size
    with FlopCounterMode(display=False) as counted:
        survey_of(call)
    assert counted.get_total_flops() == 2 * 2 * grid.tokens * slots * (call.q.shape[-1] + grid.h)
