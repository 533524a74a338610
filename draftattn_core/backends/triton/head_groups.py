"""Head groups: a call's heads in two halves, so that copies of K and V take half the memory."""

from __future__ import annotations

from itertools import groupby

from ...geometry.layout import Layout
from ...method.policy import Bits

# A group has at least this many programs of `attend`: 30 for each multiprocessor of the largest GPUs, so that the ones
# that idle at a group's end cost a percent or two.
LEAST_PROGRAMS = 4096


# A run of heads with scores of 8 bits between others with 16 is computed by itself from this many programs on.
LEAST_RUN = 512


def head_groups(layout: Layout, batch: int, heads: int) -> tuple[slice, ...]:
    """The heads in two halves where either still fills a GPU, in one piece otherwise."""
    return _halves(layout, batch, slice(0, heads))


def settled_bits(layout: Layout, batch: int, bits: tuple[Bits, ...]) -> tuple[Bits, ...]:
    """Bits of heads as a call computes them: a run of 8 too short to be launched by itself gets the 16 of its
    neighbours."""
    settled: list[Bits] = []
    for each, run in groupby(bits):
        length = len(list(run))
        short = length < len(bits) and batch * length * _blocks(layout) < LEAST_RUN
        settled += [16 if short else each] * length
    return tuple(settled)


def groups_by_bits(layout: Layout, batch: int, bits: tuple[Bits, ...]) -> tuple[slice, ...]:
    """`head_groups` of every run of heads with equal bits."""
    groups: list[slice] = []
    start = 0
    for _, run in groupby(bits):
        end = start + len(list(run))
        groups += _halves(layout, batch, slice(start, end))
        start = end
    return tuple(groups)


def _halves(layout: Layout, batch: int, part: slice) -> tuple[slice, ...]:
    middle = part.start + (part.stop - part.start + 1) // 2
    if batch * (part.stop - middle) * _blocks(layout) < LEAST_PROGRAMS:
        return (part,)
    return (slice(part.start, middle), slice(middle, part.stop))


def _blocks(layout: Layout) -> int:
    """Query blocks of a head."""
    return -(-layout.grid.tokens // layout.q_block) + -(-layout.extra // layout.q_block)
