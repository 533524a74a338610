"""select, one head at a time: the n-th largest entry of a whole map by a radix histogram, and who shares it."""

from __future__ import annotations

import triton
import triton.language as tl

from .ranking import INT_MIN, sortable

_LENGTHS = ["heads", "rows", "columns"]


@triton.jit
def _radix_pass(base, entries, prefix, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """Eight more bits of the n-th largest of the entries that begin with `prefix`, and its rank among those left."""
    bins = tl.arange(0, 512)
    counts = tl.zeros([512], tl.int32)
    for start in tl.range(0, entries, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < entries
        keys = sortable(tl.load(base + offsets, mask=inside, other=0.0)) ^ INT_MIN
        if SHIFT < 24:
            inside &= ((keys >> (SHIFT + 8)) & ((1 << (24 - SHIFT)) - 1)) == prefix
        # Entries that are out of the race go to bins of their own, spread so that they do not contend for one.
        digit = tl.where(inside, (keys >> SHIFT) & 255, 256 + (offsets & 255))
        counts += tl.histogram(digit, 512)
    counts = tl.where(bins < 256, counts, 0)
    from_top = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
    digit = tl.sum(((from_top >= n) & (bins < 256)).to(tl.int32), 0) - 1
    above = tl.sum(tl.where((bins > digit) & (bins < 256), counts, 0), 0)
    return (prefix << 8) | digit, n - above


@triton.jit(do_not_specialize=_LENGTHS)
def head_threshold_kernel(
    ranked_ptr,
    count_ptr,
    threshold_ptr,
    need_ptr,
    heads,
    rows,
    columns,
    BLOCK: tl.constexpr,
):
    """One head: the n-th largest entry of its whole map by a radix histogram, eight bits a pass."""
    pair = tl.program_id(0).to(tl.int64)
    entries = rows * columns
    base = ranked_ptr + pair * entries
    n = tl.load(count_ptr + pair % heads)
    prefix = tl.full([], 0, tl.int32)
    for turn in tl.static_range(4):
        prefix, n = _radix_pass(base, entries, prefix, n, 24 - 8 * turn, BLOCK)
    tl.store(threshold_ptr + pair, prefix ^ INT_MIN)
    tl.store(need_ptr + pair, n)


@triton.jit(do_not_specialize=_LENGTHS)
def tie_kernel(ranked_ptr, threshold_ptr, tie_ptr, rows, columns, BLOCK: tl.constexpr):
    """One row: how many of its entries equal the head's threshold."""
    row = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    base = ranked_ptr + (pair * rows + row) * columns
    threshold = tl.load(threshold_ptr + pair)
    ties = 0
    for start in tl.range(0, columns, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < columns
        keys = sortable(tl.load(base + offsets, mask=inside, other=0.0))
        ties += tl.sum(((keys == threshold) & inside).to(tl.int32), 0)
    tl.store(tie_ptr + pair * rows + row, ties)
