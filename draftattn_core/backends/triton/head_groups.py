"""Head groups: a call's heads in two halves, so that copies of K and V take half the memory."""

from __future__ import annotations

from ...geometry.layout import Layout

# A group has at least this many programs of `attend`: 30 for each multiprocessor of the largest GPUs, so that the ones
# that idle at a group's end cost a percent or two.
LEAST_PROGRAMS = 4096


def head_groups(layout: Layout, batch: int, heads: int) -> tuple[slice, ...]:
    """The heads in two halves where either still fills a GPU, in one piece otherwise."""
    half = (heads + 1) // 2
    blocks = -(-layout.grid.tokens // layout.q_block) + -(-layout.extra // layout.q_block)
    if batch * (heads - half) * blocks < LEAST_PROGRAMS:
        return (slice(0, heads),)
    return (slice(0, half), slice(half, heads))
