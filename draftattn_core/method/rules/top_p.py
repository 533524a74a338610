"""The rule `top_p`: every row keeps the shortest prefix of its sorted softmax that holds a mass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....kernels.types import Limits
from ...geometry.layout import LayoutTables
from ..policy import Policy
from ..selection import by_draft, row_limits
from .rule import Rule


class RowTopP:
    """The mass is `Policy.top_p`; the density only sets a floor. A row without a single number is kept whole."""

    form = "top_p"

    def limits(self, tables: LayoutTables, policy: Policy, densities: tuple[float, ...]) -> Limits:
        floors = [math.ceil(policy.floor * d * tables.k.video) for d in densities]
        return Limits(row_limits(tables, policy, floors), mass=policy.top_p)

    def keep(self, scores: Tensor, forced: Tensor, limits: Limits) -> Tensor:
        assert limits.rows is not None
        probabilities = torch.nan_to_num(scores.softmax(-1))
        order = torch.argsort(scores, dim=-1, descending=True, stable=True)
        ordered = probabilities.gather(-1, order)
        before = ordered.cumsum(-1) - ordered
        position = torch.arange(scores.shape[-1], device=scores.device)
        kept = (before < limits.mass) | (position < limits.rows.unsqueeze(-1))
        return torch.zeros_like(kept).scatter_(-1, order, kept) | forced


RULE = Rule(by_draft, RowTopP())
