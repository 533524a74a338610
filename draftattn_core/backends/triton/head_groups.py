"""Head groups: a call's heads in two halves, so that copies of K and V take half the memory; and what a call takes."""

from __future__ import annotations

import torch

from ...geometry.layout import Layout
from ...method.policy import Policy, head_tails, tail_rank

# A group has at least this many programs of `attend`: 30 for each multiprocessor of the largest GPUs, so that the ones
# that idle at a group's end cost a percent or two.
LEAST_PROGRAMS = 4096
# Programs of `prepare` that hold a partial sum of the average matrix each, for all heads together (kernels/prepare.py).
_PARTIAL_SUMS = 512


def head_groups(layout: Layout, batch: int, heads: int) -> tuple[slice, ...]:
    """The heads in two halves where either still fills a GPU, in one piece otherwise."""
    half = (heads + 1) // 2
    if batch * (heads - half) * _blocks(layout, layout.q_block) < LEAST_PROGRAMS:
        return (slice(0, heads),)
    return (slice(0, half), slice(half, heads))


def extra_bytes(layout: Layout, batch: int, heads: int, head_dim: int, dtype: torch.dtype, policy: Policy) -> int:
    """Memory a call of the backend `triton` takes beside q, k, v and its output, at its peak, in bytes.

    Blocks of 64 tokens or more; index tables, their constants and what torch's allocator rounds up are not counted.
    """
    groups = head_groups(layout, batch, heads)
    largest = max(part.stop - part.start for part in groups) * batch
    video = layout.grid.tokens
    item: int = dtype.itemsize
    rows, columns = -(-video // layout.q_block), -(-video // layout.k_block)
    pairs = rows * columns
    blocks = _blocks(layout, layout.k_block)
    all_pairs = _blocks(layout, layout.q_block) * blocks
    names = head_tails(policy.tail, heads)
    linear, ranks = any(name.startswith("linear") for name in names), max(tail_rank(name) for name in names)

    copies = 2 * layout.tokens * head_dim * item
    means = (rows + columns) * head_dim * 4 + columns * 4
    pooled = 2 * (1 + ranks) * columns * head_dim * item if policy.has_tail else 0
    average = head_dim * head_dim * (4 + item) if linear else 0
    all_rows = _blocks(layout, layout.q_block)
    selected = all_pairs * 5 + all_rows * 4 * (1 + -(-blocks // 32))
    # The draft's scores are ranked anew where a head has one budget, then listed.
    ranked = 4 * pairs if policy.method in ("head", "draft") else 0
    scoring = 4 * pairs + ranked + selected
    shared = min(blocks, max(1, _PARTIAL_SUMS // largest))
    programs = -(-blocks // -(-blocks // shared))
    sums = largest * programs * head_dim * head_dim * 4 if linear else 0
    group = largest * (copies + means + pooled + average) + max(largest * scoring, sums)
    # What a finished group leaves for the request: its map and its tail; at the end both are joined.
    left = batch * heads * (pooled + average + all_pairs) if len(groups) > 1 else 0
    log_counts = heads * columns * 4 if policy.has_tail else 0
    return int(max(group + left // 2, 2 * left + log_counts))


def _blocks(layout: Layout, size: int) -> int:
    return -(-layout.grid.tokens // size) + -(-layout.extra // size)
