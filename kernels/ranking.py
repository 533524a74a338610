"""Ranking: scores as integers of the same order, and the n-th largest of a row by bisection over them."""

# Functions of Triton take no types.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

INT_MIN = tl.constexpr(-2147483648)
INT_MAX = tl.constexpr(2147483647)


@triton.jit
def sortable(x):
    """Integers in the order of the floats: NaN as -inf, -0 as +0."""
    x = tl.where(x == x, x, float("-inf")) + 0.0
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def keys_of(score_row, forced_row, columns, offsets, FORCE: tl.constexpr):
    """Sortable scores of one chunk of a row, forced entries on top; lanes past the row rank below everything."""
    inside = offsets < columns
    x = tl.load(score_row + offsets, mask=inside, other=float("-inf"))
    if FORCE:
        forced = tl.load(forced_row + offsets, mask=inside, other=0)
        x = tl.where(forced != 0, float("inf"), x)
    return tl.where(inside, sortable(x), INT_MIN)


@triton.jit
def nth_largest(score_row, forced_row, columns, n, FORCE: tl.constexpr, BLOCK: tl.constexpr):
    """The n-th largest key of a row, and how many entries equal to it belong to the n largest.

    The first BLOCK keys stay in registers; of most rows these are all, and no step of the bisection reads memory.
    """
    held = keys_of(score_row, forced_row, columns, tl.arange(0, BLOCK), FORCE)
    low = tl.full([], INT_MIN, tl.int32)
    high = tl.full([], INT_MAX, tl.int32)
    for _ in tl.range(0, 32, num_stages=1):
        middle = (low | high) - ((low ^ high) >> 1)
        # Lane by lane, and one sum a step: the sum over the program's warps is what takes time here.
        above = (held >= middle).to(tl.int32)
        for start in tl.range(BLOCK, columns, BLOCK, num_stages=1):
            keys = keys_of(score_row, forced_row, columns, start + tl.arange(0, BLOCK), FORCE)
            above += (keys >= middle).to(tl.int32)
        enough = tl.sum(above, 0) >= n
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    above = (held > low).to(tl.int32)
    for start in tl.range(BLOCK, columns, BLOCK, num_stages=1):
        keys = keys_of(score_row, forced_row, columns, start + tl.arange(0, BLOCK), FORCE)
        above += (keys > low).to(tl.int32)
    return low, n - tl.sum(above, 0)
