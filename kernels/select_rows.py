"""select, one row at a time: a row's threshold, or what its entries are ranked by in the head's whole map."""

# Functions of Triton take no types.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from .ranking import INT_MAX, INT_MIN, keys_of, nth_largest

_LENGTHS = ["heads", "rows", "columns", "count_stride"]


@triton.jit
def _row_mass(score_row, columns, BLOCK: tl.constexpr):
    """Largest score of a row and the sum of exp(score - largest)."""
    top = tl.full([], float("-inf"), tl.float32)
    for start in tl.range(0, columns, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        x = tl.load(score_row + offsets, mask=offsets < columns, other=float("-inf"))
        top = tl.maximum(top, tl.max(tl.where(x == x, x, float("-inf")), 0))
    mass = tl.full([], 0.0, tl.float32)
    for start in tl.range(0, columns, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        x = tl.load(score_row + offsets, mask=offsets < columns, other=float("-inf"))
        mass += tl.sum(tl.exp(tl.where(x == x, x, float("-inf")) - top), 0)
    return top, mass


@triton.jit
def _or_else(x, otherwise: tl.constexpr):
    return tl.where(x == x, x, otherwise)


@triton.jit
def _shares(score_row, forced_row, columns, offsets, top, mass):
    """Sortable scores of one chunk of a row, and their shares of the row's softmax."""
    x = tl.load(score_row + offsets, mask=offsets < columns, other=float("-inf"))
    share = _or_else(tl.exp(x - top) / mass, 0.0)
    return keys_of(score_row, forced_row, columns, offsets, False), share


@triton.jit(do_not_specialize=_LENGTHS)
def row_kernel(
    score_ptr,
    forced_ptr,
    count_ptr,
    ranked_ptr,
    threshold_ptr,
    tie_ptr,
    top_p,
    heads,
    rows,
    columns,
    count_stride,
    METHOD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its threshold (row, top_p), or what its entries are ranked by in the head's whole map (head, draft)."""
    row = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    score_row = score_ptr + (pair * rows + row) * columns
    forced_row = forced_ptr + row.to(tl.int64) * columns
    if METHOD == 0 or METHOD == 2:
        n = tl.load(count_ptr + (pair % heads) * count_stride + row)
    if METHOD != 0:
        top, mass = _row_mass(score_row, columns, BLOCK)
        # With an infinite or no largest score the row's softmax is undefined; it counts as zero everywhere.
        top = tl.where(tl.abs(top) < float("inf"), top, float("nan"))

    if METHOD == 1:
        # The largest key such that what lies above it does not reach the mass yet is the last one that is kept.
        # Keys and shares of the first BLOCK entries stay in registers, as in `nth_largest`.
        held, held_share = _shares(score_row, forced_row, columns, tl.arange(0, BLOCK), top, mass)
        low = tl.full([], INT_MIN, tl.int32)
        high = tl.full([], INT_MAX, tl.int32)
        for _ in tl.range(0, 32, num_stages=1):
            middle = (low & high) + ((low ^ high) >> 1)
            above = tl.sum(tl.where(held > middle, held_share, 0.0), 0)
            for start in tl.range(BLOCK, columns, BLOCK, num_stages=1):
                keys, share = _shares(score_row, forced_row, columns, start + tl.arange(0, BLOCK), top, mass)
                above += tl.sum(tl.where(keys > middle, share, 0.0), 0)
            short = above < top_p
            high = tl.where(short, middle, high)
            low = tl.where(short, low, middle + 1)
        above = tl.full([], 0.0, tl.float32)
        count = 0
        ties = 0
        of_tie = tl.full([], 0.0, tl.float32)
        for start in tl.range(0, columns, BLOCK, num_stages=1):
            offsets = start + tl.arange(0, BLOCK)
            keys, share = _shares(score_row, forced_row, columns, offsets, top, mass)
            above += tl.sum(tl.where(keys > low, share, 0.0), 0)
            count += tl.sum((keys > low).to(tl.int32), 0)
            tied = (keys == low) & (offsets < columns)
            ties += tl.sum(tied.to(tl.int32), 0)
            of_tie = tl.maximum(of_tie, tl.max(tl.where(tied, share, 0.0), 0))
        wanted = tl.where(of_tie > 0.0, tl.ceil((top_p - above) / tl.maximum(of_tie, 1.0e-38)), ties.to(tl.float32))
        wanted = tl.minimum(tl.maximum(wanted, 0.0), ties.to(tl.float32)).to(tl.int32)
        # Loaded here: kept over the loops, it does not fit into registers on some targets.
        n = tl.maximum(tl.load(count_ptr + (pair % heads) * count_stride + row), count + wanted)

    if METHOD == 0 or METHOD == 1:
        threshold, need = nth_largest(score_row, forced_row, columns, n, METHOD == 0, BLOCK)
        tl.store(threshold_ptr + pair * rows + row, threshold)
        tl.store(tie_ptr + pair * rows + row, need)
    if METHOD == 2:
        threshold, need = nth_largest(score_row, forced_row, columns, n, True, BLOCK)
        log_mass = tl.log(mass)
        passed = 0
        for start in tl.range(0, columns, BLOCK, num_stages=1):
            offsets = start + tl.arange(0, BLOCK)
            inside = offsets < columns
            keys = keys_of(score_row, forced_row, columns, offsets, True)
            tied = (keys == threshold) & inside
            order = passed + tl.cumsum(tied.to(tl.int32), 0)
            promised = (keys > threshold) | (tied & (order <= need))
            passed += tl.sum(tied.to(tl.int32), 0)
            x = tl.load(score_row + offsets, mask=inside, other=float("-inf"))
            ranked = _or_else(x - top - log_mass, float("-inf"))
            ranked = tl.where(promised, float("inf"), ranked)
            tl.store(ranked_ptr + (pair * rows + row) * columns + offsets, ranked, mask=inside)
    if METHOD == 3:
        for start in tl.range(0, columns, BLOCK, num_stages=1):
            offsets = start + tl.arange(0, BLOCK)
            inside = offsets < columns
            x = tl.load(score_row + offsets, mask=inside, other=float("-inf"))
            share = _or_else(tl.exp(x - top) / mass, 0.0)
            tl.store(ranked_ptr + (pair * rows + row) * columns + offsets, share, mask=inside)
