"""AdaSpa: exact masses, head budgets by recall, and two searches in a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules import adaspa
from draftattention.draftattn_core.method.rules.call import RuleCall
from tests.core.rule_cases import Place, layout_of, rule_call, some_bias, whole_logits, with_policy
from tests.core.test_calibatt_energy import brute_force

LAYOUTS = {
    "raster": layout_of((3, 5, 7)),
    "extra tokens on both sides": layout_of((3, 5, 7), 5, 12),
    "tiles": layout_of((4, 5, 6), 0, 9, order="tile", q_block=16, k_block=16),
}


def trade(recall: list[float], sparsity: list[float], threshold: float) -> list[float]:
    """Densities of the heads of one sample after they traded, one head at a time."""
    heads = len(recall)
    by_recall = sorted(range(heads), key=lambda h: (-recall[h], h))
    n = min(sum(r > threshold for r in recall), heads // 2)
    traded = list(sparsity)
    for h in by_recall[:n]:
        traded[h] = (1 + sparsity[h]) / 2 if sparsity[h] > 1 / 3 else 2 * sparsity[h]
    for h in by_recall[heads - n :]:
        traded[h] = max(0.0, (3 * sparsity[h] - 1) / 2)
    return [1 - s for s in traded]


def expected_keep(call: RuleCall, energy: Tensor, densities: tuple[float, ...]) -> Tensor:
    tables = call.tables
    columns = tables.k.video
    keep = torch.ones(*call.q.shape[:2], tables.q.total, tables.k.total, dtype=torch.bool)

    def best(row: Tensor, density: float) -> list[int]:
        count = min(columns, max(1, round(density * columns)))
        return sorted(range(columns), key=lambda c: (-float(row[c]), c))[:count]

    for b in range(len(energy)):
        recall = []
        for h, density in enumerate(densities):
            shares = []
            for row in energy[b, h]:
                held = sum(float(row[c]) for c in best(row, density)) + float(row[columns:].sum())
                shares.append(held / float(row.sum()))
            recall.append(sum(shares) / len(shares))
        for h, density in enumerate(trade(recall, [1 - d for d in densities], adaspa.RECALL)):
            for r, row in enumerate(energy[b, h]):
                keep[b, h, r, :columns] = False
                keep[b, h, r, best(row, density)] = True
    return keep


def call_of(layout: Layout, seed: int = 0, position: Place | None = None, heads: int = 5) -> RuleCall:
    bias = some_bias(layout) if layout.extra else None
    call = rule_call(layout, Policy(density=0.2), heads=heads, key_bias=bias, seed=seed, position=position)
    call.q[:, 3:] = 8 * call.k[:, 3:]  # heads that look at themselves, among diffuse ones
    return call


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_keep_their_heaviest_blocks_and_heads_trade_by_recall(layout: Layout) -> None:
    call = call_of(layout)
    expected = expected_keep(call, brute_force(call, whole_logits(call).softmax(-1)), (0.2,) * 5)
    assert torch.equal(adaspa.select(call), expected)
    kept = expected[:, :, : call.tables.q.video, : call.tables.k.video].float().mean((2, 3))
    assert (kept.amax(1) > 1.5 * kept.amin(1)).all()


def test_heads_may_start_from_densities_of_their_own() -> None:
    densities = (0.1, 0.3, 0.2, 0.5, 0.15)
    call = with_policy(call_of(LAYOUTS["raster"]), Policy(density=densities))
    expected = expected_keep(call, brute_force(call, whole_logits(call).softmax(-1)), densities)
    assert torch.equal(adaspa.select(call), expected)


@pytest.mark.parametrize("density", [0.2, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("recall", [[0.9, 0.85, 0.5, 0.7], [0.9] * 4, [0.1] * 4, [0.2, 0.95, 0.3, 0.4, 0.6]])
def test_trading_keeps_the_sum_of_the_budgets(recall: list[float], density: float) -> None:
    heads = len(recall)
    found = adaspa.head_densities_by_recall(
        torch.tensor([recall], dtype=torch.float64), torch.tensor([[density]], dtype=torch.float64)
    )
    expected = trade(recall, [1 - density] * heads, adaspa.RECALL)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-12, atol=1e-15)
    assert float(found.sum()) == pytest.approx(heads * density)


def test_masks_serve_until_the_second_search_which_takes_the_first_log_sum_exp() -> None:
    layout = LAYOUTS["extra tokens on both sides"]
    calls = [call_of(layout, seed, Place(progress=progress)) for seed, progress in enumerate((0.2, 0.5, 0.6, 0.9))]
    state: dict[str, object] = {}
    keeps = [adaspa.select(replace(call, state=state)) for call in calls]
    assert torch.equal(keeps[1], keeps[0]) and torch.equal(keeps[3], keeps[2])
    stale = (whole_logits(calls[2]) - whole_logits(calls[0]).logsumexp(-1, keepdim=True)).exp()
    assert torch.equal(keeps[2], expected_keep(calls[2], brute_force(calls[2], stale), (0.2,) * 5))
    assert not torch.equal(keeps[2], keeps[0])


def test_a_run_that_gets_sparse_late_searches_once_and_one_without_a_position_too() -> None:
    layout = LAYOUTS["raster"]
    for position in (Place(progress=0.7), None):
        state: dict[str, object] = {}
        first = adaspa.select(replace(call_of(layout, 0, position), state=state))
        assert torch.equal(adaspa.select(replace(call_of(layout, 1, position), state=state)), first)


def test_another_shape_or_layout_is_searched_anew() -> None:
    state: dict[str, object] = {}
    adaspa.select(replace(call_of(LAYOUTS["raster"]), state=state))
    for call in (call_of(LAYOUTS["tiles"]), call_of(LAYOUTS["raster"], heads=4)):
        assert torch.equal(adaspa.select(replace(call, state=state)), adaspa.select(call))
