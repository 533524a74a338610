"""The bench of portable masks: maps, recall and memory are those of an independent computation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.calibration.evaluation import LayerCall
from benchmarks.calibration.mask_memory import GRIDS, WAN_14B, mask_memory
from benchmarks.calibration.plan import PortableMasks, scenarios
from benchmarks.calibration.portable import EXACT, KINDS, PORTABLE, SETS, UNIFORM, Masks, judge, masks_of, with_energies
from benchmarks.calibration.portable_report import portable_json, portable_section, summary
from benchmarks.calibration.portable_runs import captured_unit, kinds_on
from benchmarks.calibration.published import energies_of, mask_layout
from benchmarks.quality.capture import CapturedCall
from benchmarks.quality.work import exact_share
from draftattention.draftattn_core import Settings, TableCache, TokenGrid
from draftattention.draftattn_core.method.calibatt.intervals import intervals_of
from draftattention.draftattn_core.run.fingerprint import Fingerprint
from tests.core.cases import smooth_qkv

GRID = TokenGrid(4, 11, 17)
CACHE = TableCache(16)
STEPS = 4


def layer_call(grid: TokenGrid = GRID, step: int = 0, layer: int = 0) -> LayerCall:
    torch.manual_seed(7 * step + layer)
    q, k, v = smooth_qkv(Settings().layout(grid), heads=2, dim=32, dtype=torch.float32)
    sharp = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    return LayerCall(CapturedCall(q * sharp, k, v, grid, 0, step, layer), Settings(), CACHE)


@pytest.fixture(scope="module")
def masks() -> Masks:
    """Of one run of two layers."""
    at = [(step, layer) for step in range(STEPS) for layer in (0, 1)]
    return masks_of([{one: with_energies(layer_call(GRID, *one))[1] for one in at}], GRID, STEPS, 0.5, CACHE)


def test_energies_come_with_the_dense_output() -> None:
    layer = layer_call()
    call = layer.call
    out, found = with_energies(layer)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(call.q, call.k, call.v), rtol=1e-4, atol=1e-5)
    for name, expected in energies_of(layer).items():
        if name != "similarity":
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_recall_and_error_are_those_of_the_whole_map(kind: str, masks: Masks) -> None:
    layer = layer_call(step=3, layer=1)
    call = layer.call
    tables, keep = masks.keep(kind, layer, CACHE)
    dropped, ours, norm, recall, work, tail = judge(layer, tables, keep)
    tokens = torch.empty(GRID.tokens, dtype=torch.long)
    q_of, k_of = tokens.clone(), tokens.clone()
    q_of[tables.perm], k_of[tables.perm] = tables.q.of_token, tables.k.of_token
    kept = keep[:, :, q_of][..., k_of]
    logits = call.q @ call.k.transpose(-1, -2) * layer.scale
    rows = layer.tables.perm[layer.positions]
    exact = (logits.softmax(-1) @ call.v)[:, :, rows]
    off = (logits.masked_fill(~kept, -math.inf).softmax(-1) @ call.v)[:, :, rows] - exact
    assert recall == pytest.approx(float((logits.softmax(-1) * kept).sum(-1)[:, :, rows].mean()), rel=1e-4)
    assert dropped == pytest.approx(float(off.square().sum()) / len(rows), rel=1e-3)
    assert norm == pytest.approx(float(exact.square().sum()) / len(rows), rel=1e-4)
    assert work == pytest.approx(float(kept.double().mean()), rel=1e-6) and 0.0 < tail < 1.0
    assert ours < dropped


def test_portable_scores_get_the_density_of_each_head_of_the_exact_masks_on_any_grid(masks: Masks) -> None:
    for grid in (GRID, TokenGrid(5, 9, 15)):
        layer = layer_call(grid, 2, 1)
        tables, keep = masks.keep(PORTABLE, layer, CACHE)
        for head, density in enumerate(masks.densities[2, 1]):
            # Whole blocks; those that hold the query itself are always kept.
            assert exact_share(keep[:, head : head + 1], tables) == pytest.approx(density, abs=0.12)
        for kind in (SETS, UNIFORM):
            tables, keep = masks.keep(kind, layer, CACHE)
            assert bool(keep.any(-1).all())
    tables, keep = masks.keep(EXACT, layer_call(GRID, 2, 1), CACHE)
    assert torch.equal(keep[0], masks.exact[2, 1])


def test_memory_is_that_of_masks_that_exist(masks: Masks) -> None:
    found, made = mask_memory(Fingerprint("wan", 2, 2, 32), GRID, STEPS), masks.bytes()
    # Buckets of four steps: all three are met.
    assert (found.votes, found.bits) == (made["votes"], made["bits"])
    assert (found.our_scores, found.our_sets) == (made["scores"], made["sets"])
    columns = CACHE.get(mask_layout(GRID), "cpu").k.video
    every_second = torch.arange(columns).remainder(2).eq(0).expand(2, columns, columns)
    assert found.longest_lists == STEPS * 2 * intervals_of(every_second).bytes >= made["lists"]


def test_a_large_models_masks_take_what_their_formats_say() -> None:
    small, large = (mask_memory(WAN_14B, grid, 50) for grid in GRIDS.values())
    assert small.votes == 50 * 40 * 40 * 256 * 256 and large.votes == 50 * 40 * 40 * 591 * 591
    assert large.bits < large.merged_lists < large.longest_lists and large.our_sets < large.scores < large.bits
    assert small.profile == large.profile < 1_000_000


def test_the_page_says_what_was_measured() -> None:
    scenario = next(one for one in scenarios(quick=False) if isinstance(one, PortableMasks))
    assert "Not measured yet." in portable_section(scenario, [])
    judged = [[[0.04, 0.01, 1.0, 0.9, 0.3, 0.02]] * 5]
    assert summary(judged) == pytest.approx((0.3, 0.02, 0.9, 0.2, 0.1))
    unit = captured_unit(scenario, scenario.masses[0], scenario.other)
    records = [{"unit": unit, "figures": dict.fromkeys(kinds_on(scenario, scenario.other), judged)}]
    page = "\n".join(portable_section(scenario, records))
    assert f"| {scenario.other} | 0.5 | {PORTABLE} | 0.300 | 0.9000 | 0.2000 | 0.1000 | 0.020 |" in page
    rows = portable_json(scenario, records)
    assert all(
        {"method", "budget", "work", "rel_l2", "worst5", "psnr_db", "ssim", "grid", "held_out"} <= set(r) for r in rows
    )
    assert {row["method"]: row["work"] for row in rows}[f"{PORTABLE}, our tail"] == pytest.approx(0.32)
