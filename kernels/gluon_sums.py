"""attend in Gluon, a group that multiplies: 64 query rows of a block, over the tail and all listed blocks."""

# Functions of Gluon take no types.
# mypy: ignore-errors

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .gluon_ring import next_slot, span
from .gluon_tail import pooled


@gluon.jit
def _weigh(scores, factor, top, total):
    """One step of the online softmax in base 2: weights, what earlier sums shrink by, new maximum, new total."""
    # The scale is positive, so it may wait until after the maximum: with the subtraction it is one FFMA.
    new_top = gl.maximum(top, gl.max(scores, 1) * factor)
    weights = gl.exp2(scores * factor - gl.expand_dims(new_top, 1))
    shrink = gl.exp2(top - new_top)
    return weights, shrink, new_top, total * shrink + gl.sum(weights, 1)


@gluon.jit
def consume(
    half: gl.constexpr,
    of_q,
    of_k,
    of_out,
    perm_ptr,
    sizes,
    queries,
    ring,
    DIM: gl.constexpr,
    K_BLOCK: gl.constexpr,
    TAIL: gl.constexpr,
    COV: gl.constexpr,
    RANKS: gl.constexpr,
    BIAS: gl.constexpr,
    LSE: gl.constexpr,
    SLOTS: gl.constexpr,
    q_d: gl.constexpr,
    o_d: gl.constexpr,
):
    """A group that multiplies: rows `half` * 64 to `half` * 64 + 63 of the query block."""
    LOG2E: gl.constexpr = 1.4426950408889634
    LN2: gl.constexpr = 0.6931471805599453
    kind: gl.constexpr = queries.dtype
    # Layouts: of a product with 128 and DIM columns, of weights as its first operand, of rows in memory.
    WIDE: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    EDGES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, K_BLOCK, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    ROWS: gl.constexpr = gl.SliceLayout(1, SUMS)
    MEMORY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    TILE: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)

    q_ptr, q_n, q_start, q_end = of_q
    entries, words_row, bias_row, log_weight_row, scale = of_k
    out_ptr, o_n, lse_ptr = of_out
    pooled_end, whole, count, video_tokens, tokens, k_video, k_total = sizes
    tiles, full, free = ring
    mine = queries.index(half)
    positions = q_start + half * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, MEMORY))
    valid = gl.expand_dims(positions < q_end, 1)
    dims = gl.expand_dims(gl.arange(0, DIM, layout=gl.SliceLayout(0, MEMORY)), 0)
    rows = gl.load(perm_ptr + positions, mask=positions < q_end, other=0)
    mine.store(gl.load(q_ptr + gl.expand_dims(rows * q_n, 1) + dims * q_d, mask=valid, other=0.0))
    fence_async_shared()

    # The floor of the running maximum is finite, so that a block with every key masked does not turn into NaN.
    top = gl.full([64], -1.0e30, gl.float32, layout=ROWS)
    total = gl.full([64], 0.0, gl.float32, layout=ROWS)
    acc = gl.full([64, DIM], 0.0, gl.float32, layout=SUMS)
    factor = scale * LOG2E
    turn = 0
    if TAIL:
        acc, top, total, turn = pooled(
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
            DIM,
            COV,
            RANKS,
            SLOTS,
        )
    if K_BLOCK == 128:
        steps = whole
    else:
        steps = whole // 2
    wide = gl.full([64, 128], 0.0, gl.float32, layout=WIDE)
    top_wide = gl.convert_layout(top, gl.SliceLayout(1, WIDE))
    total_wide = gl.convert_layout(total, gl.SliceLayout(1, WIDE))
    if steps > 0:
        slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
        mbarrier.wait(bar, phase)
        keys = slot._reinterpret(kind, [128, DIM], TILE)
        scores = warpgroup_mma(mine, keys.permute((1, 0)), wide, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(num_outstanding=0, deps=(scores,))
        mbarrier.arrive(empty, count=1)
        turn += 1
        weights, shrink, top_wide, total_wide = _weigh(scores, factor, top_wide, total_wide)
        acc = acc * gl.expand_dims(gl.convert_layout(shrink, ROWS), 1)
        p = gl.convert_layout(weights.to(kind), WEIGHTS)
        # The slot of the next product is waited for one step ahead: see below.
        slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
        mbarrier.wait(bar, phase)
        for _ in range(1, steps):
            slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
            keys = slot._reinterpret(kind, [128, DIM], TILE)
            scores = warpgroup_mma(mine, keys.permute((1, 0)), wide, use_acc=False, is_async=True)
            slot_2, bar_2, empty_2, phase_2 = next_slot(tiles, full, free, turn + 1, SLOTS)
            mbarrier.wait(bar_2, phase_2)
            values = slot_2._reinterpret(kind, [128, DIM], TILE)
            sums = warpgroup_mma(p, values, acc, is_async=True)
            # One product may go on: the sums, over the softmax.
            scores = warpgroup_mma_wait(num_outstanding=1, deps=(scores,))
            mbarrier.arrive(empty, count=1)
            weights, shrink, top_wide, total_wide = _weigh(scores, factor, top_wide, total_wide)
            # The assembler would wait for the sums before the softmax, but not before the loop that this wait is.
            slot_3, bar_3, empty_3, phase_3 = next_slot(tiles, full, free, turn + 2, SLOTS)
            mbarrier.wait(bar_3, phase_3)
            # The old weights are read until now. Named as what this wait keeps, they would cost 32 PRMT a step: that
            # the assembler does keep them is tested.
            acc = warpgroup_mma_wait(num_outstanding=0, deps=(sums,))
            p = gl.convert_layout(weights.to(kind), WEIGHTS)
            mbarrier.arrive(empty_2, count=1)
            turn += 2
            acc = acc * gl.expand_dims(gl.convert_layout(shrink, ROWS), 1)
        slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
        sums = warpgroup_mma(p, slot._reinterpret(kind, [128, DIM], TILE), acc, is_async=True)
        acc = warpgroup_mma_wait(num_outstanding=0, deps=(sums,))
        mbarrier.arrive(empty, count=1)
        turn += 1
    top = gl.convert_layout(top_wide, gl.SliceLayout(1, EDGES))
    total = gl.convert_layout(total_wide, gl.SliceLayout(1, EDGES))

    # An odd block that was left over, a short one, extra tokens: one at a time, with a mask.
    places = gl.arange(0, K_BLOCK, layout=gl.SliceLayout(0, EDGES))
    none = gl.full([64, K_BLOCK], 0.0, gl.float32, layout=EDGES)
    for entry in range(steps * (128 // K_BLOCK), count):
        start, end = span(gl.load(entries + entry), K_BLOCK, k_video, video_tokens, tokens)
        seen = start + places < end
        slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
        mbarrier.wait(bar, phase)
        if K_BLOCK == 128:
            keys = slot._reinterpret(kind, [128, DIM], TILE)
        else:
            keys = slot._reinterpret(kind, [2, 64, DIM], TILE).index(0)
        scores = warpgroup_mma(mine, keys.permute((1, 0)), none, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(num_outstanding=0, deps=(scores,))
        mbarrier.arrive(empty, count=1)
        if BIAS:
            extra = start + places - video_tokens
            bias = gl.load(bias_row + extra, mask=seen & (extra >= 0), other=0.0)
            scores += gl.expand_dims(bias * (1.0 / scale), 0)
        scores = gl.where(gl.expand_dims(seen, 0), scores, float("-inf"))
        weights, shrink, top, total = _weigh(scores, factor, top, total)
        acc = acc * gl.expand_dims(gl.convert_layout(shrink, ROWS), 1)
        slot, bar, empty, phase = next_slot(tiles, full, free, turn + 1, SLOTS)
        mbarrier.wait(bar, phase)
        if K_BLOCK == 128:
            values = slot._reinterpret(kind, [128, DIM], TILE)
        else:
            values = slot._reinterpret(kind, [2, 64, DIM], TILE).index(0)
        sums = warpgroup_mma(gl.convert_layout(weights, WEIGHTS).to(kind), values, acc, is_async=True)
        acc = warpgroup_mma_wait(num_outstanding=0, deps=(sums,))
        mbarrier.arrive(empty, count=1)
        turn += 2

    divisor = gl.where(total == 0.0, 1.0, total)
    acc = acc * gl.expand_dims(gl.convert_layout(1.0 / divisor, ROWS), 1)
    # By way of Q's tile, which nobody needs any more, into rows as memory has them.
    mine.store(acc.to(kind))
    positions = q_start + half * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, MEMORY))
    valid = gl.expand_dims(positions < q_end, 1)
    rows = gl.load(perm_ptr + positions, mask=positions < q_end, other=0)
    gl.store(out_ptr + gl.expand_dims(rows * o_n, 1) + dims * o_d, mine.load(MEMORY), mask=valid)
    if LSE:
        lse = gl.where(total == 0.0, float("-inf"), (top + gl.log2(divisor)) * LN2)
        positions = q_start + half * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, EDGES))
        rows = gl.load(perm_ptr + positions, mask=positions < q_end, other=0)
        gl.store(lse_ptr + rows, lse, mask=positions < q_end)
