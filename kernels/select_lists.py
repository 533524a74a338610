"""select, what comes out: the kept pairs of a row as a map and as an ascending list, the others behind it."""

# Functions of Triton take no types.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from .ranking import keys_of, nth_largest

# Block pairs in one word of a packed map.
WORD = 32

_LENGTHS = ["rows", "columns", "q_total", "k_total", "threshold_stride"]


@triton.jit
def _store_words(words_ptr, keep, start, k_total, BLOCK: tl.constexpr):
    """Bit i of word w is pair 32 w + i of the row."""
    bits = tl.reshape(keep.to(tl.int32), [BLOCK // 32, 32]) << tl.arange(0, 32)[None, :]
    words = start // 32 + tl.arange(0, BLOCK // 32)
    tl.store(words_ptr + words, tl.sum(bits, 1), mask=words * 32 < k_total)


@triton.jit
def _slots(keep, offsets, written, k_total):
    """Where blocks go in a row's list: kept ones from its start, all others from its end backwards."""
    before = written + tl.cumsum(keep.to(tl.int32), 0)
    return tl.where(keep, before - 1, k_total - 1 - offsets + before)


@triton.jit(do_not_specialize=_LENGTHS)
def emit_kernel(
    score_ptr,
    ranked_ptr,
    forced_ptr,
    threshold_ptr,
    tie_ptr,
    keep_ptr,
    list_ptr,
    list_count_ptr,
    words_ptr,
    rows,
    columns,
    q_total,
    k_total,
    threshold_stride,
    FORCE: tl.constexpr,
    ALL_TIES: tl.constexpr,
    RESCUE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of the whole call: its map, as bytes and as bits, its list and its count."""
    row = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    out_row = (pair * q_total + row) * k_total
    is_video = row < rows
    score_row = tl.where(is_video, row, 0)
    ranked_row = ranked_ptr + (pair * rows + score_row) * columns
    forced_row = forced_ptr + score_row.to(tl.int64) * columns
    threshold = tl.load(threshold_ptr + (pair * rows + score_row) // threshold_stride)
    need = tl.load(tie_ptr + pair * rows + score_row)
    best = tl.full([], -1, tl.int32)
    if RESCUE:
        # Where skipped blocks are dropped, a row that kept none of the video would have nothing: its best block stays.
        score_base = score_ptr + (pair * rows + score_row) * columns
        highest, _ = nth_largest(score_base, forced_row, columns, 1, False, BLOCK)
        lowest = columns
        kept = 0
        for start in tl.range(0, columns, BLOCK, num_stages=1):
            offsets = start + tl.arange(0, BLOCK)
            inside = offsets < columns
            hit = inside & (keys_of(score_base, forced_row, columns, offsets, False) == highest)
            lowest = tl.minimum(lowest, tl.min(tl.where(hit, offsets, columns), 0))
            forced = tl.load(forced_row + offsets, mask=inside, other=0) != 0
            keys = keys_of(ranked_row, forced_row, columns, offsets, FORCE)
            kept += tl.sum((inside & ((keys >= threshold) | forced)).to(tl.int32), 0)
        best = tl.where(kept == 0, lowest, best)
    words_row = words_ptr + (pair * q_total + row) * tl.cdiv(k_total, 32)
    passed = 0
    written = 0
    for start in tl.range(0, k_total, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < k_total
        scored = offsets < tl.where(is_video, columns, 0)
        keys = keys_of(ranked_row, forced_row, columns, offsets, FORCE)
        tied = (keys == threshold) & scored
        forced = tl.load(forced_row + offsets, mask=scored, other=0) != 0
        if ALL_TIES:
            keep = (keys >= threshold) | forced
        else:
            order = passed + tl.cumsum(tied.to(tl.int32), 0)
            keep = (keys > threshold) | (tied & (order <= need)) | forced
        keep = tl.where(scored, keep | (offsets == best), inside)
        passed += tl.sum(tied.to(tl.int32), 0)
        tl.store(list_ptr + out_row + _slots(keep, offsets, written, k_total), offsets, mask=inside)
        tl.store(keep_ptr + out_row + offsets, keep.to(tl.uint8), mask=inside)
        _store_words(words_row, keep, start, k_total, BLOCK)
        written += tl.sum(keep.to(tl.int32), 0)
    tl.store(list_count_ptr + pair * q_total + row, written)


@triton.jit(do_not_specialize=_LENGTHS)
def list_kernel(keep_ptr, list_ptr, list_count_ptr, words_ptr, q_total, k_total, BLOCK: tl.constexpr):
    """One row: the list, count and packed map of a given map."""
    row = tl.program_id(1).to(tl.int64) * q_total + tl.program_id(0)
    words_row = words_ptr + row * tl.cdiv(k_total, 32)
    written = 0
    for start in tl.range(0, k_total, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < k_total
        keep = tl.load(keep_ptr + row * k_total + offsets, mask=inside, other=0) != 0
        tl.store(list_ptr + row * k_total + _slots(keep, offsets, written, k_total), offsets, mask=inside)
        _store_words(words_row, keep, start, k_total, BLOCK)
        written += tl.sum(keep.to(tl.int32), 0)
    tl.store(list_count_ptr + row, written)
