"""AdaSpa (arXiv 2502.21079, no code published): exact block masses, searched twice in a run, budgets by head.

At two steps the softmax mass of every block pair is computed exactly and each row keeps its best ones; the masks serve
all steps until the next search. Heads that keep much of their mass give up blocks for as many heads that keep little.
The second search takes the log-sum-exp of the first for its own, which saves one of two passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...geometry.layout import LayoutTables
from ...geometry.per_head import per_head
from ..calibatt.energy import Energy, block_energy
from ..selection import row_top_k
from .call import RuleCall, whole_map
from .rule import Rule

RECALL = 0.8
# Second search, as progress: step 30 of 50. The first is at the first sparse call (the paper: step 10 of 50).
SECOND_SEARCH = 0.6


@dataclass(frozen=True)
class Search:
    """What the searches of one layer left.

    Attributes:
        keep: (B, H, q blocks, k blocks) bool.
        lse: `Energy.lse` of the first search.
        second: whether the second search is done.
    """

    keep: Tensor
    lse: Tensor
    second: bool


def row_counts(density: Tensor, columns: int) -> Tensor:
    """Whole blocks per row for densities of any shape: at least 1, at most all."""
    return (density * columns).round().clamp(1, columns).to(torch.int64)


def best_blocks(energy: Tensor, density: Tensor, columns: int) -> Tensor:
    """Per row the best of the first `columns` blocks of energy (B, H, R, C), as many for every row of a head.

    Args:
        density: (B or 1, H), share of a row's video blocks.

    Returns:
        (B, H, R, columns) bool.
    """
    counts = row_counts(density, columns)[:, :, None, None].expand(*energy.shape[:2], 1, 1)
    return row_top_k(energy[..., :columns].nan_to_num(nan=-1.0), counts)


def head_densities_by_recall(recall: Tensor, density: Tensor, threshold: float = RECALL) -> Tensor:
    """Densities after heads have traded: (B, H), with the same sum as before where heads start from one density.

    With s = 1 - density: of the n heads that recall more than `threshold`, each takes the sparsity (1 + s) / 2, and the
    n heads that recall least take (3 s - 1) / 2. Ours: n is at most half of the heads, so that none is on both sides,
    and below s = 1/3, where the latter would be negative, heads trade no more than s.

    Args:
        recall: (B, H) share of its mass that a head keeps at `density`.
        density: (B or 1, H).
    """
    heads = recall.shape[1]
    density = density.expand_as(recall)
    order = recall.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(heads, device=order.device).expand_as(order))
    traders = (recall > threshold).sum(1, keepdim=True).clamp_max(heads // 2)
    step = torch.minimum(density / 2, 1 - density)
    traded = torch.where(rank < traders, density - step, density)
    return torch.where(rank >= heads - traders, density + step, traded)


def mask_from(energy: Tensor, tables: LayoutTables, density: Tensor) -> Tensor:
    """Kept block pairs (B, H, q blocks, k blocks) from exact masses (B, H, video q blocks, k blocks).

    Args:
        density: (1, H), share of a row's video blocks.
    """
    columns = tables.k.video
    even = best_blocks(energy, density, columns)
    kept = (energy[..., :columns] * even).sum(-1) + energy[..., columns:].sum(-1)
    recall = (kept / energy.sum(-1)).mean(-1)
    return whole_map(best_blocks(energy, head_densities_by_recall(recall, density), columns), tables)


def select(call: RuleCall) -> Tensor:
    """The mask of the last search; this call searches if it is the first, or the first past `SECOND_SEARCH`.

    Without a position there is no second search.
    """
    key = (call.tables.layout, *call.q.shape[:2])
    found: Search | None = call.state.get("search") if call.state.get("of") == key else None
    late = call.position is not None and call.position.progress >= SECOND_SEARCH
    if found is None or (late and not found.second):
        lse = None if found is None else found.lse
        energy: Energy = block_energy(call.q, call.k, call.tables, call.scale, key_bias=call.key_bias, lse=lse)
        density = per_head(call.heads.densities, call.q.device, energy.blocks.dtype)
        found = Search(mask_from(energy.blocks, call.tables, density.unsqueeze(0)), energy.lse, late)
        call.state.update(of=key, search=found)
    return found.keep


RULE = Rule(select)
