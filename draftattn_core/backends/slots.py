"""Slots: block order with every block full, what batched kernels work on. A short block's last slots hold no token."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry.layout import BlockTable, LayoutTables
from .request import AttendRequest


def slot_tokens(table: BlockTable, perm: Tensor) -> Tensor:
    """(blocks * size,) int64 host token of every slot; past the end of a short block its last token repeats."""
    offset = torch.arange(table.size, device=perm.device)
    counts = (table.starts[1:] - table.starts[:-1]).unsqueeze(1)
    return perm[(table.starts[:-1].unsqueeze(1) + torch.minimum(offset, counts - 1)).flatten()]


def query_slots(tables: LayoutTables) -> Tensor:
    """(L,) int64: the query slot of every host token."""
    table = tables.q
    position = torch.arange(table.bounds[-1], device=table.of_token.device)
    return (table.of_token * table.size + position - table.starts[table.of_token])[tables.inverse]


def key_slot_bias(request: AttendRequest, dtype: torch.dtype) -> Tensor:
    """(B, k blocks * size) added to the logit of every key slot: the key bias on extra tokens, -inf without a token."""
    table, extra = request.tables.k, request.tables.layout.extra
    offset = torch.arange(table.size, device=request.q.device)
    bias = torch.zeros(request.q.shape[0], table.total, table.size, dtype=dtype, device=request.q.device)
    bias.masked_fill_(offset >= table.counts[:, None], -torch.inf)
    bias = bias.flatten(1)
    if request.key_bias is not None and extra:
        start = table.video * table.size
        bias[:, start : start + extra] = request.key_bias.to(dtype)
    return bias
