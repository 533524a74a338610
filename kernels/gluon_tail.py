"""attend in Gluon, the tail: pooled keys and what the ranks and the average matrix add, for 64 query rows."""

# Functions of Gluon take no types.
# mypy: ignore-errors

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from .gluon_ring import next_slot


@gluon.jit
def pooled(
    mine,
    words_row,
    log_weight_row,
    scale,
    pooled_end,
    k_video,
    k_total,
    acc,
    top,
    total,
    ring,
    DIM: gl.constexpr,
    COV: gl.constexpr,
    RANKS: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """Sums, maximum and total of 64 query rows over the skipped blocks, and how many slots that took."""
    LOG2E: gl.constexpr = 1.4426950408889634
    kind: gl.constexpr = mine.dtype
    NARROW: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    ROWS: gl.constexpr = gl.SliceLayout(1, SUMS)
    TILE: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    tiles, full, free = ring
    narrow = gl.full([64, 64], 0.0, gl.float32, layout=NARROW)
    factor = scale * LOG2E
    turn = 0
    columns = gl.arange(0, 64, layout=gl.SliceLayout(0, NARROW))
    bit = gl.full([64], 1, gl.int32, layout=gl.SliceLayout(0, NARROW)) << (columns % 32)
    last_word = gl.cdiv(k_total, 32) - 1
    for start in range(0, pooled_end, 64):
        inside = start + columns < k_video
        word = gl.load(words_row + start // 32)
        word_2 = gl.load(words_row + gl.minimum(start // 32 + 1, last_word))
        log_weight = gl.load(log_weight_row + start + columns, mask=inside, other=float("-inf"))
        kept = gl.where(columns < 32, word, word_2) & bit
        added = gl.where(kept != 0, float("-inf"), log_weight * LOG2E)
        slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
        means = slot._reinterpret(kind, [2, 64, DIM], TILE)
        mbarrier.wait(bar, phase)
        scores = warpgroup_mma(mine, means.index(0).permute((1, 0)), narrow, use_acc=False, is_async=True)
        if RANKS > 0:
            along = warpgroup_mma(mine, means.index(1).permute((1, 0)), narrow, use_acc=False, is_async=True)
            if RANKS > 1:
                slot_2, bar_2, empty_2, phase_2 = next_slot(tiles, full, free, turn + 1, SLOTS)
                means_2 = slot_2._reinterpret(kind, [2, 64, DIM], TILE)
                mbarrier.wait(bar_2, phase_2)
                along_2 = warpgroup_mma(mine, means_2.index(0).permute((1, 0)), narrow, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(num_outstanding=RANKS, deps=(scores,))
        scores = scores * factor + gl.expand_dims(added, 0)
        floor = gl.convert_layout(top, gl.SliceLayout(1, NARROW))
        new_top = gl.maximum(floor, gl.max(scores, 1))
        weights = gl.exp2(scores - gl.expand_dims(new_top, 1))
        summed = gl.convert_layout(gl.sum(weights, 1), ROWS)
        new_top = gl.convert_layout(new_top, ROWS)
        shrink = gl.exp2(top - new_top)
        total = total * shrink + summed
        acc = acc * gl.expand_dims(shrink, 1)
        top = new_top
        if RANKS > 0:
            along = warpgroup_mma_wait(num_outstanding=RANKS - 1, deps=(along,))
            if RANKS > 1:
                along_2 = warpgroup_mma_wait(num_outstanding=0, deps=(along_2,))
            mbarrier.arrive(empty, count=1)
            turn += 1
            if RANKS > 1:
                means = means_2
                empty = empty_2
            else:
                slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
                means = slot._reinterpret(kind, [2, 64, DIM], TILE)
                mbarrier.wait(bar, phase)
        # Where the mean of V lies, and the first of what the ranks add: see `produce`.
        V_PLACE: gl.constexpr = 0 if RANKS == 1 else 1
        sums = warpgroup_mma(gl.convert_layout(weights, WEIGHTS).to(kind), means.index(V_PLACE), acc, is_async=True)
        if RANKS == 1:
            moved = gl.convert_layout(weights * along * scale, WEIGHTS).to(kind)
            sums = warpgroup_mma(moved, means.index(1), sums, is_async=True)
        if RANKS > 1:
            slot_3, bar_3, empty_3, phase_3 = next_slot(tiles, full, free, turn + 1, SLOTS)
            means_3 = slot_3._reinterpret(kind, [2, 64, DIM], TILE)
            mbarrier.wait(bar_3, phase_3)
            moved = gl.convert_layout(weights * along * scale, WEIGHTS).to(kind)
            sums = warpgroup_mma(moved, means_3.index(0), sums, is_async=True)
            moved_2 = gl.convert_layout(weights * along_2 * scale, WEIGHTS).to(kind)
            sums = warpgroup_mma(moved_2, means_3.index(1), sums, is_async=True)
        acc = warpgroup_mma_wait(num_outstanding=0, deps=(sums,))
        mbarrier.arrive(empty, count=1)
        turn += 1
        if RANKS > 1:
            mbarrier.arrive(empty_3, count=1)
            turn += 1
    if COV:
        slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
        if DIM == 64:
            cov = slot._reinterpret(kind, [2, 64, DIM], TILE).index(0)
        else:
            cov = slot._reinterpret(kind, [DIM, DIM], TILE)
        mbarrier.wait(bar, phase)
        moved = warpgroup_mma(mine, cov, acc, use_acc=False, is_async=True)
        moved = warpgroup_mma_wait(num_outstanding=0, deps=(moved,))
        mbarrier.arrive(empty, count=1)
        turn += 1
        acc += moved * gl.expand_dims(total * scale, 1)
    return acc, top, total, turn
