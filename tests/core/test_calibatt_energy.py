"""Block energies: the sums of a whole softmax map, for any grid, extra tokens, key bias, batch and chunk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.calibatt.energy import Energy, block_energy, kept_mass
from draftattention.draftattn_core.method.rules.call import RuleCall
from tests.core.cases import blocks_of
from tests.core.rule_cases import layout_of, rule_call, some_bias, whole_logits

LAYOUTS = {
    "raster": layout_of(),
    "extra tokens on both sides": layout_of((3, 5, 7), 5, 12),
    "tiles": layout_of((3, 5, 7), 0, 9, order="tile"),
    "small query blocks": layout_of((2, 3, 9), 3, 0, q_block=8, k_block=16),
    "fewer tokens than a block": layout_of((1, 2, 3), q_block=16, k_block=16),
}
CHUNKS = [1, 5_000, 20_000, 1 << 20]


def energy_of(call: RuleCall, lse: Tensor | None = None, chunk_bytes: int = 1 << 20) -> Energy:
    return block_energy(
        call.q, call.k, call.tables, call.scale, key_bias=call.key_bias, lse=lse, chunk_bytes=chunk_bytes
    )


def brute_force(call: RuleCall, probabilities: Tensor) -> Tensor:
    """Equation 5, block pair by block pair, from a whole map (B, H, L, L) in the host's order."""
    tables = call.tables
    queries, keys = blocks_of(tables, "q")[: tables.q.video], blocks_of(tables, "k")
    energy = torch.zeros(*call.q.shape[:2], len(queries), len(keys), dtype=torch.float64)
    for r, rows in enumerate(queries):
        for c, columns in enumerate(keys):
            energy[:, :, r, c] = probabilities[:, :, rows][:, :, :, columns].sum((2, 3)) / len(rows)
    return energy


def call_of(layout: Layout, **kwargs: object) -> RuleCall:
    return rule_call(layout, key_bias=some_bias(layout) if layout.extra else None, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_energies_are_the_block_sums_of_the_whole_softmax(layout: Layout, chunk_bytes: int) -> None:
    call = call_of(layout)
    found = energy_of(call, chunk_bytes=chunk_bytes)
    expected = brute_force(call, whole_logits(call).softmax(-1))
    torch.testing.assert_close(found.blocks, expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.blocks.sum(-1), torch.ones_like(expected[..., 0]), rtol=1e-12, atol=0)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    call = rule_call(layout_of(), dtype=torch.float32)
    call.q.mul_(300)
    found = energy_of(call)
    assert found.blocks.dtype == torch.float32
    torch.testing.assert_close(
        found.blocks.double(), brute_force(call, whole_logits(call).softmax(-1)), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(found.blocks.sum(-1), torch.ones_like(found.blocks[..., 0]), rtol=1e-5, atol=0)


def test_a_hidden_token_has_no_energy() -> None:
    layout = layout_of((3, 5, 7), 0, 9)
    call = rule_call(layout, key_bias=torch.tensor([[-torch.inf] * 8 + [0.0]]))
    assert (energy_of(call).blocks[..., call.tables.k.video] == 0).all()
    assert (energy_of(call).blocks[..., call.tables.k.video + 1] > 0).all()


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_log_sum_exp_of_another_step_replaces_the_rows_own(layout: Layout, chunk_bytes: int) -> None:
    first, later = call_of(layout), call_of(layout, seed=1)
    found = energy_of(later, lse=energy_of(first).lse, chunk_bytes=chunk_bytes)
    stale = (whole_logits(later) - whole_logits(first).logsumexp(-1, keepdim=True)).exp()
    torch.testing.assert_close(found.blocks, brute_force(later, stale), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_kept_mass_is_what_each_token_pays_to_the_kept_blocks(layout: Layout, chunk_bytes: int) -> None:
    call = call_of(layout)
    tables = call.tables
    keep = torch.rand(2, 3, tables.q.total, tables.k.total, generator=torch.Generator().manual_seed(2)) < 0.4
    keep[:, :, tables.q.video :] = True
    keep[:, :, :, tables.k.video :] = True
    found = kept_mass(call.q, call.k, tables, keep, call.scale, key_bias=call.key_bias, chunk_bytes=chunk_bytes)
    probabilities = whole_logits(call).softmax(-1)
    expected = torch.zeros_like(found)
    for r, rows in enumerate(blocks_of(tables, "q")):
        for c, columns in enumerate(blocks_of(tables, "k")):
            mass = probabilities[:, :, rows][:, :, :, columns].sum(-1)
            expected[:, :, rows] += mass * keep[:, :, r, c, None]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
