"""The rule `row`: every query block keeps the same number of best key blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.types import Limits
from ...geometry.layout import LayoutTables
from ..policy import Policy
from ..selection import by_draft, row_limits, row_top_k
from .rule import Rule


class RowTopK:
    """The best entries of every row, forced ones first."""

    form = "row"

    def limits(self, tables: LayoutTables, policy: Policy, densities: tuple[float, ...]) -> Limits:
        return Limits(row_limits(tables, policy, [round(d * tables.k.video) for d in densities]))

    def keep(self, scores: Tensor, forced: Tensor, limits: Limits) -> Tensor:
        assert limits.rows is not None
        return row_top_k(scores.masked_fill(forced, torch.inf), limits.rows.unsqueeze(-1))


RULE = Rule(by_draft, RowTopK())
