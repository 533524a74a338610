"""Accelerators without a kernel of ours: many query blocks per batched product, gathered keys, bounded scratch.

A loop over single query blocks (cpu/rows.py) would spend its time launching kernels here. Per head, query blocks are
sorted by how many key blocks they keep and taken in groups of similar length, each padded to its longest; a group's
scratch stays within `SCRATCH_BYTES` (a single query block that needs more is a group of its own).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.types import Tail
from ..geometry.blocks import statistics_dtype
from ..method.tail.formula import add_skipped, skipped_logits
from .request import AttendRequest, new_output
from .slots import key_slot_bias, query_slots, slot_tokens

SCRATCH_BYTES = 96 << 20
# A group takes rows down to this share of its longest list; the rest of the padding would be wasted work.
_LEAST_FILL = 0.75


def plan_groups(counts: list[int], row_bytes: int, block_bytes: int, limit: int) -> list[tuple[int, int, int]]:
    """Cut rows sorted by `counts`, largest first, into groups: (first row, end row, longest count).

    Args:
        row_bytes, block_bytes: scratch of one row, and of each key block it keeps.
        limit: scratch of a group.
    """
    groups: list[tuple[int, int, int]] = []
    start = 0
    while start < len(counts):
        longest = counts[start]
        room = max(1, limit // (row_bytes + longest * block_bytes))
        end = start + 1
        while end < len(counts) and end - start < room and counts[end] >= _LEAST_FILL * longest:
            end += 1
        groups.append((start, end, longest))
        start = end
    return groups


def _has_half_products(q: Tensor) -> bool:
    """Whether half-precision matrices can be multiplied into float32; elsewhere they are converted first."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    return half and q.device.type == "cuda" and torch.version.hip is None and hasattr(torch.ops.aten.bmm, "dtype")


def _half_product(a: Tensor, b: Tensor) -> Tensor:
    """Batched a @ b of half-precision matrices, summed and returned in float32."""
    return torch.bmm(a, b, out_dtype=torch.float32)


def attend_chunks(request: AttendRequest) -> Tensor:
    """Output (B, H, L, D). Softmax and sums in float32 (float64 for float64 inputs), whatever the input dtype.

    Reads the counts of kept blocks back from the device once per call; nothing else waits.
    """
    q, tables, dtype = request.q, request.tables, statistics_dtype(request.q)
    operand = q.dtype if _has_half_products(q) else dtype
    counts = request.keep.sum(-1)
    order = counts.argsort(dim=-1, descending=True, stable=True)
    sorted_counts = counts.gather(-1, order).tolist()

    size, q_size, dim = tables.k.size, tables.q.size, q.shape[-1]
    pooled = tables.k.video if request.tail is not None else 0
    item = dtype.itemsize
    row_bytes = q_size * (2 * pooled + 4 * dim) * item
    # Gathered keys and values, scores, and their copy in the operand dtype.
    block_bytes = 2 * size * dim * operand.itemsize + q_size * size * (item + operand.itemsize)

    q_tokens, k_tokens = slot_tokens(tables.q, tables.perm), slot_tokens(tables.k, tables.perm)
    bias, slots = key_slot_bias(request, dtype).view(-1, tables.k.total, size), query_slots(tables)
    out = new_output(q)
    for batch in range(q.shape[0]):
        for head in range(q.shape[1]):
            queries, keys, values = (
                x[batch, head].index_select(0, tokens).to(operand).view(-1, rows_in_block, dim)
                for x, tokens, rows_in_block in (
                    (q, q_tokens, q_size),
                    (request.k, k_tokens, size),
                    (request.v, k_tokens, size),
                )
            )
            # Kept blocks first, in ascending order; what follows them in a list is masked.
            lists = request.keep[batch, head].int().argsort(dim=-1, descending=True, stable=True)
            tail = None if request.tail is None else request.tail.of_batch(batch, head)
            result = queries.new_empty(queries.shape, dtype=dtype)
            for start, end, longest in plan_groups(sorted_counts[batch][head], row_bytes, block_bytes, SCRATCH_BYTES):
                rows = order[batch, head, start:end]
                chosen = lists[rows, :longest]
                padding = torch.arange(longest, device=q.device) >= counts[batch, head, rows, None]
                columns = bias[batch][chosen].masked_fill(padding.unsqueeze(-1), -torch.inf).flatten(1)
                kept = (keys[chosen].flatten(1, 2), values[chosen].flatten(1, 2), columns)
                skipped = None if tail is None else (tail, request.keep[batch, head, rows, :pooled])
                result[rows] = _attend_group(queries[rows], kept, skipped, request.scale)
            out[batch, head] = result.view(-1, dim).index_select(0, slots).to(q.dtype)
    return out


def _attend_group(
    queries: Tensor,
    kept: tuple[Tensor, Tensor, Tensor],
    skipped: tuple[Tail, Tensor] | None,
    scale: float,
) -> Tensor:
    """Rows (n, q block, D) of one head in float32 or float64.

    Args:
        queries: (n, q block, D) in the operand dtype.
        kept: keys and values (n, columns, D) in the operand dtype and the bias of the columns (n, columns).
        skipped: the head's tail and which video blocks each row keeps (n, g); None without a tail.
    """
    keys, values, bias = kept
    half = queries.dtype != bias.dtype
    product = _half_product if half else torch.bmm
    scores = product(queries, keys.transpose(1, 2)).mul_(scale).add_(bias.unsqueeze(1))
    if skipped is None:
        # Every row keeps something (method/selection.py), so no maximum is -inf.
        highest = scores.amax(-1, keepdim=True)
        scores.sub_(highest).exp_()
        return product(scores.to(values.dtype), values) / scores.sum(-1, keepdim=True)

    tail, keeps = skipped
    scaled = (queries.to(bias.dtype) * scale).flatten(0, 1)
    pooled = skipped_logits(scaled, tail).view(*queries.shape[:2], -1)
    pooled.masked_fill_(keeps.unsqueeze(1), -torch.inf)
    highest = pooled.amax(-1, keepdim=True)
    if scores.shape[-1]:
        highest = torch.maximum(highest, scores.amax(-1, keepdim=True))
    pooled.sub_(highest).exp_()
    scores.sub_(highest).exp_()
    out = product(scores.to(values.dtype), values)
    mass = add_skipped(out.view_as(scaled), pooled.flatten(0, 1), scaled, tail)
    return out / (mass.view_as(highest) + scores.sum(-1, keepdim=True))
