"""select, one head at a time: the n-th largest entry of a whole map by a radix histogram, and who shares it.

A map has up to 1.7 million entries at 720p and a call few heads, so many programs share a map. Eight bits a pass: every
program adds its part of the map to the head's histogram (integers, so the order in which they arrive changes nothing),
and the next pass begins with reading from it which entries are still in the race.
"""

# Functions of Triton take no types.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from .ranking import INT_MIN, sortable

PASSES = 4
BINS = 256

_LENGTHS = ["heads", "rows", "columns", "per_program", "turn"]


@triton.jit
def _race(bins_ptr, n, turns):
    """First bits of the n-th largest entry after `turns` passes, and its rank among the entries that share them."""
    bins = tl.arange(0, 256)
    prefix = tl.full([], 0, tl.int32)
    for turn in tl.range(0, turns, num_stages=1):
        counts = tl.load(bins_ptr + turn * 256 + bins)
        from_top = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
        digit = tl.sum((from_top >= n).to(tl.int32), 0) - 1
        n -= tl.sum(tl.where(bins > digit, counts, 0), 0)
        prefix = (prefix << 8) | digit
    return prefix, n


@triton.jit(do_not_specialize=_LENGTHS)
def histogram_kernel(ranked_ptr, count_ptr, bins_ptr, heads, rows, columns, per_program, turn, BLOCK: tl.constexpr):
    """One part of a head's map: how many of its entries that are still in the race have which next eight bits."""
    pair = tl.program_id(1).to(tl.int64)
    entries = rows * columns
    base = ranked_ptr + pair * entries
    head_bins = bins_ptr + pair * (4 * 256)
    prefix, _ = _race(head_bins, tl.load(count_ptr + pair % heads), turn)
    known_bits = (1 << (8 * turn)) - 1
    bins = tl.arange(0, 256)
    counts = tl.zeros([256], tl.int32)
    others = tl.zeros([BLOCK], tl.int32)
    first = tl.program_id(0) * per_program
    last = tl.minimum(first + per_program, entries)
    for start in tl.range(first, last, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        keys = sortable(tl.load(base + offsets, mask=offsets < last, other=0.0)) ^ INT_MIN
        digits = keys >> (24 - 8 * turn)
        racing = (offsets < last) & (((digits >> 8) & known_bits) == prefix)
        # Entries that are out of the race are counted in the first bin, and taken out of it again: a histogram's time
        # goes with its bins.
        counts += tl.histogram(tl.where(racing, digits & 255, 0), 256)
        others += tl.where(racing, 0, 1)
    counts -= tl.where(bins == 0, tl.sum(others, 0), 0)
    tl.atomic_add(head_bins + turn * 256 + bins, counts, mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=_LENGTHS)
def head_threshold_kernel(count_ptr, bins_ptr, threshold_ptr, need_ptr, heads):
    """One head: its n-th largest entry, from the histograms of all passes, and how many of those equal to it belong."""
    pair = tl.program_id(0).to(tl.int64)
    key, need = _race(bins_ptr + pair * (4 * 256), tl.load(count_ptr + pair % heads), 4)
    tl.store(threshold_ptr + pair, key ^ INT_MIN)
    tl.store(need_ptr + pair, need)


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
