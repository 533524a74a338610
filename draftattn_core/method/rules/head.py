"""The rule `head`: one budget per head, spent over its whole draft map, with a floor per row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....kernels.types import Limits
from ...geometry.layout import LayoutTables
from ...geometry.per_head import per_head
from ..policy import Policy
from ..selection import by_draft, forced_key, row_limits, row_top_k
from .rule import Rule


class HeadBudget:
    """A row is promised its forced entries and its best ones up to its floor; the rest of the head's budget goes to
    the largest log-softmax of the whole map, so a row with large logits does not starve the others. A budget smaller
    than the sum of the promises grows to it."""

    form = "head"

    def limits(self, tables: LayoutTables, policy: Policy, densities: tuple[float, ...]) -> Limits:
        rows, columns = tables.q.video, tables.k.video
        promised = tuple(math.floor(policy.floor * d * columns) for d in densities)
        budgets = tuple(round(d * rows * columns) for d in densities)
        row_least = row_limits(tables, policy, promised)

        def make() -> Tensor:
            of_rows = row_least.sum(-1, dtype=torch.int32)
            return torch.maximum(per_head(budgets, tables.perm.device, torch.int32), of_rows)

        key = ("head counts", promised, budgets, policy.drops, forced_key(policy))
        return Limits(row_least, tables.constant(key, make))

    def keep(self, scores: Tensor, forced: Tensor, limits: Limits) -> Tensor:
        assert limits.rows is not None and limits.heads is not None
        log_mass = torch.nan_to_num(scores.log_softmax(-1), nan=-torch.inf, neginf=-torch.inf)
        promised = row_top_k(scores.masked_fill(forced, torch.inf), limits.rows.unsqueeze(-1))
        ranked = log_mass.masked_fill_(promised, torch.inf).flatten(2)
        return row_top_k(ranked, limits.heads.unsqueeze(-1)).view_as(scores)


RULE = Rule(by_draft, HeadBudget())
