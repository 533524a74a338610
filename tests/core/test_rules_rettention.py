"""Re-ttention: a window of places, the ratio of a full step, and a residual that makes that step exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules import rettention
from draftattention.draftattn_core.method.rules.call import RuleCall
from tests.core.cases import blocks_of
from tests.core.rule_cases import coordinates, layout_of, rule_call, some_bias, whole_logits

LAYOUTS = {
    "raster": layout_of((3, 5, 7)),
    "extra tokens on both sides": layout_of((3, 5, 7), 5, 12),
    "tiles": layout_of((4, 5, 6), 0, 9, order="tile"),
}


def token_mask(call: RuleCall, keep: Tensor) -> Tensor:
    """(B, H, L, L) bool in the host's order from kept block pairs."""
    mask = torch.zeros(*call.q.shape[:3], call.q.shape[2], dtype=torch.bool)
    for r, rows in enumerate(blocks_of(call.tables, "q")):
        for c, columns in enumerate(blocks_of(call.tables, "k")):
            mask[:, :, torch.tensor(rows)[:, None], torch.tensor(columns)] = keep[:, :, r, c, None, None]
    return mask


@pytest.mark.parametrize("density", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_block_pair_is_kept_if_two_of_its_tokens_have_near_places(layout: Layout, density: float) -> None:
    tables = build_tables(layout)
    half = int(density * layout.grid.frame_tokens) // 2

    def places(which: str, blocks: int) -> list[list[int]]:
        found = []
        for block in blocks_of(tables, which)[:blocks]:
            where = [coordinates(layout, token - layout.extra_before) for token in block]
            found.append([row * layout.grid.w + column for _, row, column in where])
        return found

    expected = torch.tensor(
        [
            [any(abs(a - b) <= half for a in queries for b in keys) for keys in places("k", tables.k.video)]
            for queries in places("q", tables.q.video)
        ]
    )
    assert torch.equal(rettention.window_mask(tables, density), expected)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_sparse_steps_take_denominator_and_residual_of_the_full_one(layout: Layout) -> None:
    bias = some_bias(layout) if layout.extra else None
    full_call = rule_call(layout, Policy(density=0.1), key_bias=bias)
    keep = rettention.select(full_call)
    assert not keep.all()
    masks = token_mask(full_call, keep)

    def outputs(call: RuleCall) -> tuple[Tensor, Tensor]:
        logits = whole_logits(call)
        return logits.softmax(-1) @ call.v, logits.masked_fill(~masks, -torch.inf).softmax(-1) @ call.v

    full, sparse = outputs(full_call)
    remembered = rettention.remember(full_call, keep, full, sparse)
    torch.testing.assert_close(remembered.corrected(sparse, 0), full, rtol=1e-12, atol=1e-12)

    weights = whole_logits(full_call).exp()
    ratio = (weights * masks).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    residual = full - sparse * ratio
    for since in (0, 1, 3):
        later = rule_call(layout, key_bias=bias, seed=1 + since)
        kept = whole_logits(later).exp() * masks
        # The released code divides by the denominator over the ratio, then adds the residual.
        expected = kept / (kept.sum(-1, keepdim=True) / (ratio + 0.04 * since)) @ later.v + residual
        torch.testing.assert_close(remembered.corrected(outputs(later)[1], since), expected, rtol=1e-11, atol=1e-12)
