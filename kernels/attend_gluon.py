"""attend, written out for Hopper (sm_90) in Gluon: one group of warps fetches by TMA, two multiply 64 query rows each.

The answer of `attend_pointer` in one kernel. Where Triton's automatic warp specialisation waits for every product, here
each group counts its own: the scores of the next keys and the sums of the last are under way together, and the softmax
begins when the scores are there, over the sums. Tiles come through one ring of slots in the order in which both groups
use them. Q is read in the host's order, K and V in block order. Has not yet run on a GPU.
"""

# Functions of Triton take no types.
# mypy: ignore-errors

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .runtime import FUSED, on_device, strides
from .types import AttendInputs

# One group that fetches and two that multiply, of four warps each; the registers of a thread at launch.
WARPS = 12
REGISTERS = 168
# Query rows of a program, and tiles of 128 rows under way by head size: as many as fit beside Q.
ROWS = 128
SLOTS = {64: 8, 128: 6}

_LENGTHS = ["heads", "tokens", "video_tokens", "q_video", "q_total", "k_video", "k_total", "bias_stride"]


@gluon.jit
def _span(block, SIZE: gl.constexpr, video_blocks, video_tokens, tokens):
    """First position of a block and the position behind its last token, in block order."""
    extra = block >= video_blocks
    start = gl.where(extra, video_tokens + (block - video_blocks) * SIZE, block * SIZE)
    end = gl.minimum(start + SIZE, gl.where(extra, tokens, video_tokens))
    return start, end


@gluon.jit
def _whole_entries(entries, count, video_tokens, k_total, K_BLOCK: gl.constexpr):
    """How many entries of an ascending list are whole blocks of video: all but some of the last."""
    LANES: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    first_edge = video_tokens // K_BLOCK
    edges = count * 0
    for start in range(0, k_total - first_edge, 128):
        places = count - 1 - start - gl.arange(0, 128, layout=LANES)
        blocks = gl.load(entries + places, mask=places >= 0, other=-1)
        edges += gl.sum((blocks >= first_edge).to(gl.int32), 0)
    return count - edges


@gluon.jit
def _slot(tiles, full, free, turn, SLOTS: gl.constexpr):
    """The slot whose turn it is, its two barriers, and the phase in which it is used."""
    index = turn % SLOTS
    return tiles.index(index), full.index(index), free.index(index), (turn // SLOTS) & 1


@gluon.jit
def _fetch(desc, plane, row, column, slot, bar, first, stride: gl.constexpr, DIM: gl.constexpr):
    """Fetch 64 rows of a matrix of `desc` into quarters `first`, `first + stride`, ... of a slot, 64 columns each."""
    BOX: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
    quarters = slot._reinterpret(slot.dtype, [DIM // 32, 1, 64, 64], BOX)
    for panel in gl.static_range(DIM // 64):
        quarter = quarters.index(first + panel * stride)
        tma.async_copy_global_to_shared(desc, [plane, row, column + panel * 64], bar, quarter)


@gluon.jit
def _fetch_keys(desc, pair, row, row_2, tiles, full, free, turn, DIM: gl.constexpr, SLOTS: gl.constexpr):
    """Fetch two times 64 rows, so that they lie in a slot as one tile of 128."""
    slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
    mbarrier.wait(empty, phase ^ 1)
    mbarrier.expect(bar, 128 * DIM * 2)
    _fetch(desc, pair, row, 0, slot, bar, 0, 2, DIM)
    _fetch(desc, pair, row_2, 0, slot, bar, 1, 2, DIM)
    return turn + 1


@gluon.jit
def _fetch_two(
    desc, column, desc_2, column_2, pair, row, tiles, full, free, turn, DIM: gl.constexpr, SLOTS: gl.constexpr
):
    """Fetch 64 rows of two matrices, so that they lie in a slot as two tiles of 64."""
    slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
    mbarrier.wait(empty, phase ^ 1)
    mbarrier.expect(bar, 128 * DIM * 2)
    _fetch(desc, pair, row, column, slot, bar, 0, 1, DIM)
    _fetch(desc_2, pair, row, column_2, slot, bar, DIM // 64, 1, DIM)
    return turn + 1


@gluon.jit
def _fetch_some(desc, pair, row, ROWS: gl.constexpr, tiles, full, free, turn, DIM: gl.constexpr, SLOTS: gl.constexpr):
    """Fetch 64 or 128 neighbouring rows, so that they lie in a slot as one tile."""
    slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
    mbarrier.wait(empty, phase ^ 1)
    mbarrier.expect(bar, ROWS * DIM * 2)
    for part in gl.static_range(ROWS // 64):
        _fetch(desc, pair, row + part * 64, 0, slot, bar, part, ROWS // 64, DIM)
    return turn + 1


@gluon.jit
def _produce(
    descs,
    entries,
    plane,
    sizes,
    ring,
    DIM: gl.constexpr,
    K_BLOCK: gl.constexpr,
    TAIL: gl.constexpr,
    COV: gl.constexpr,
    RANKS: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """The warp that fetches: every tile, in the order in which the others use them."""
    k_desc, v_desc, k_mean, v_mean, u_desc, w_desc, cov_desc = descs
    pooled_end, whole, count, video_tokens, tokens, k_video, k_total = sizes
    tiles, full, free = ring
    turn = 0
    if TAIL:
        for start in range(0, pooled_end, 64):
            if RANKS == 0:
                turn = _fetch_two(k_mean, 0, v_mean, 0, plane, start, tiles, full, free, turn, DIM, SLOTS)
            else:
                turn = _fetch_two(k_mean, 0, u_desc, 0, plane, start, tiles, full, free, turn, DIM, SLOTS)
                if RANKS == 1:
                    turn = _fetch_two(v_mean, 0, w_desc, 0, plane, start, tiles, full, free, turn, DIM, SLOTS)
                else:
                    turn = _fetch_two(u_desc, DIM, v_mean, 0, plane, start, tiles, full, free, turn, DIM, SLOTS)
                    turn = _fetch_two(w_desc, 0, w_desc, DIM, plane, start, tiles, full, free, turn, DIM, SLOTS)
        if COV:
            turn = _fetch_some(cov_desc, plane, 0, DIM, tiles, full, free, turn, DIM, SLOTS)
    # Scores of a step are asked for before the sums of the step before: so K is one step ahead of V.
    if K_BLOCK == 128:
        steps = whole
    else:
        steps = whole // 2
    row = 0
    row_2 = 64
    for step in range(steps):
        last, last_2 = row, row_2
        if K_BLOCK == 128:
            row = gl.load(entries + step) * 128
            row_2 = row + 64
        else:
            row = gl.load(entries + 2 * step) * 64
            row_2 = gl.load(entries + 2 * step + 1) * 64
        turn = _fetch_keys(k_desc, plane, row, row_2, tiles, full, free, turn, DIM, SLOTS)
        if step > 0:
            turn = _fetch_keys(v_desc, plane, last, last_2, tiles, full, free, turn, DIM, SLOTS)
    if steps > 0:
        turn = _fetch_keys(v_desc, plane, row, row_2, tiles, full, free, turn, DIM, SLOTS)
    for entry in range(steps * (128 // K_BLOCK), count):
        start, _ = _span(gl.load(entries + entry), K_BLOCK, k_video, video_tokens, tokens)
        turn = _fetch_some(k_desc, plane, start, K_BLOCK, tiles, full, free, turn, DIM, SLOTS)
        turn = _fetch_some(v_desc, plane, start, K_BLOCK, tiles, full, free, turn, DIM, SLOTS)


@gluon.jit
def _weigh(scores, factor, top, total):
    """One step of the online softmax in base 2: weights, what earlier sums shrink by, new maximum, new total."""
    # The scale is positive, so it may wait until after the maximum: with the subtraction it is one FFMA.
    new_top = gl.maximum(top, gl.max(scores, 1) * factor)
    weights = gl.exp2(scores * factor - gl.expand_dims(new_top, 1))
    shrink = gl.exp2(top - new_top)
    return weights, shrink, new_top, total * shrink + gl.sum(weights, 1)


@gluon.jit
def _consume(
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
    # Layouts: of a product with 128, 64 and DIM columns, of weights as its first operand, of rows in memory.
    WIDE: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
    NARROW: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
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
    narrow = gl.full([64, 64], 0.0, gl.float32, layout=NARROW)
    factor = scale * LOG2E
    turn = 0
    if TAIL:
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
            slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
            pooled = slot._reinterpret(kind, [2, 64, DIM], TILE)
            mbarrier.wait(bar, phase)
            scores = warpgroup_mma(mine, pooled.index(0).permute((1, 0)), narrow, use_acc=False, is_async=True)
            if RANKS > 0:
                along = warpgroup_mma(mine, pooled.index(1).permute((1, 0)), narrow, use_acc=False, is_async=True)
                if RANKS > 1:
                    slot_2, bar_2, empty_2, phase_2 = _slot(tiles, full, free, turn + 1, SLOTS)
                    pooled_2 = slot_2._reinterpret(kind, [2, 64, DIM], TILE)
                    mbarrier.wait(bar_2, phase_2)
                    along_2 = warpgroup_mma(
                        mine, pooled_2.index(0).permute((1, 0)), narrow, use_acc=False, is_async=True
                    )
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
                    pooled = pooled_2
                    empty = empty_2
                else:
                    slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
                    pooled = slot._reinterpret(kind, [2, 64, DIM], TILE)
                    mbarrier.wait(bar, phase)
            # Where the mean of V lies, and the first of what the ranks add: see `_produce`.
            V_PLACE: gl.constexpr = 0 if RANKS == 1 else 1
            sums = warpgroup_mma(
                gl.convert_layout(weights, WEIGHTS).to(kind), pooled.index(V_PLACE), acc, is_async=True
            )
            if RANKS == 1:
                moved = gl.convert_layout(weights * along * scale, WEIGHTS).to(kind)
                sums = warpgroup_mma(moved, pooled.index(1), sums, is_async=True)
            if RANKS > 1:
                slot_3, bar_3, empty_3, phase_3 = _slot(tiles, full, free, turn + 1, SLOTS)
                pooled_3 = slot_3._reinterpret(kind, [2, 64, DIM], TILE)
                mbarrier.wait(bar_3, phase_3)
                moved = gl.convert_layout(weights * along * scale, WEIGHTS).to(kind)
                sums = warpgroup_mma(moved, pooled_3.index(0), sums, is_async=True)
                moved_2 = gl.convert_layout(weights * along_2 * scale, WEIGHTS).to(kind)
                sums = warpgroup_mma(moved_2, pooled_3.index(1), sums, is_async=True)
            acc = warpgroup_mma_wait(num_outstanding=0, deps=(sums,))
            mbarrier.arrive(empty, count=1)
            turn += 1
            if RANKS > 1:
                mbarrier.arrive(empty_3, count=1)
                turn += 1
        if COV:
            slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
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

    if K_BLOCK == 128:
        steps = whole
    else:
        steps = whole // 2
    wide = gl.full([64, 128], 0.0, gl.float32, layout=WIDE)
    top_wide = gl.convert_layout(top, gl.SliceLayout(1, WIDE))
    total_wide = gl.convert_layout(total, gl.SliceLayout(1, WIDE))
    if steps > 0:
        slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
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
        slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
        mbarrier.wait(bar, phase)
        for _ in range(1, steps):
            slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
            keys = slot._reinterpret(kind, [128, DIM], TILE)
            scores = warpgroup_mma(mine, keys.permute((1, 0)), wide, use_acc=False, is_async=True)
            slot_2, bar_2, empty_2, phase_2 = _slot(tiles, full, free, turn + 1, SLOTS)
            mbarrier.wait(bar_2, phase_2)
            values = slot_2._reinterpret(kind, [128, DIM], TILE)
            sums = warpgroup_mma(p, values, acc, is_async=True)
            # One product may go on: the sums, over the softmax.
            scores = warpgroup_mma_wait(num_outstanding=1, deps=(scores,))
            mbarrier.arrive(empty, count=1)
            weights, shrink, top_wide, total_wide = _weigh(scores, factor, top_wide, total_wide)
            # The assembler would wait for the sums before the softmax, but not before the loop that this wait is.
            slot_3, bar_3, empty_3, phase_3 = _slot(tiles, full, free, turn + 2, SLOTS)
            mbarrier.wait(bar_3, phase_3)
            # The old weights are read until now.
            acc, _ = warpgroup_mma_wait(num_outstanding=0, deps=(sums, p))
            p = gl.convert_layout(weights.to(kind), WEIGHTS)
            mbarrier.arrive(empty_2, count=1)
            turn += 2
            acc = acc * gl.expand_dims(gl.convert_layout(shrink, ROWS), 1)
        slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
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
        start, end = _span(gl.load(entries + entry), K_BLOCK, k_video, video_tokens, tokens)
        seen = start + places < end
        slot, bar, empty, phase = _slot(tiles, full, free, turn, SLOTS)
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
        slot, bar, empty, phase = _slot(tiles, full, free, turn + 1, SLOTS)
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


@gluon.jit(do_not_specialize=_LENGTHS)
def gluon_kernel(
    q_ptr,
    out_ptr,
    lse_ptr,
    perm_ptr,
    list_ptr,
    count_ptr,
    words_ptr,
    bias_ptr,
    log_weight_ptr,
    k_desc,
    v_desc,
    k_mean_desc,
    v_mean_desc,
    u_desc,
    w_desc,
    cov_desc,
    scale,
    q_b,
    q_h,
    q_n,
    q_d: gl.constexpr,
    o_b,
    o_h,
    o_n,
    o_d: gl.constexpr,
    heads,
    tokens,
    video_tokens,
    q_video,
    q_total,
    k_video,
    k_total,
    bias_stride,
    DIM: gl.constexpr,
    K_BLOCK: gl.constexpr,
    TAIL: gl.constexpr,
    COV: gl.constexpr,
    RANKS: gl.constexpr,
    BIAS: gl.constexpr,
    LSE: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """One program: one query block of 128 rows of one head. SLOTS tiles of 128 rows are under way at most."""
    # Rows of extra tokens attend to everything: they start first, or they would finish last.
    index = gl.program_id(0)
    q_extra = q_total - q_video
    row = gl.where(index < q_extra, q_video + index, index - q_extra)
    plane = gl.program_id(1)
    pair = plane.to(gl.int64)
    batch = pair // heads
    head = pair % heads
    list_row = pair * q_total + row
    q_start, q_end = _span(row, 128, q_video, video_tokens, tokens)
    entries = list_ptr + list_row * k_total
    count = gl.load(count_ptr + list_row)
    whole = _whole_entries(entries, count, video_tokens, k_total, K_BLOCK)
    pooled_end = gl.where(row < q_video, k_video, 0)

    kind: gl.constexpr = k_desc.dtype
    TILE: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    queries = gl.allocate_shared_memory(kind, [2, 64, DIM], TILE)
    tiles = gl.allocate_shared_memory(kind, [SLOTS, 2 * DIM, 64], TILE)
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(free.index(slot), count=2)

    q_base = q_ptr + batch * q_b + head * q_h
    out_base = out_ptr + batch * o_b + head * o_h
    lse_base = lse_ptr + pair * tokens
    words_row = words_ptr + list_row * gl.cdiv(k_total, 32)
    bias_row = bias_ptr + batch * bias_stride
    log_weight_row = log_weight_ptr + head * k_video
    sizes = (pooled_end, whole, count, video_tokens, tokens, k_video, k_total)
    ring = (tiles, full, free)
    descs = (k_desc, v_desc, k_mean_desc, v_mean_desc, u_desc, w_desc, cov_desc)
    of_q = (q_base, q_n, q_start, q_end)
    of_k = (entries, words_row, bias_row, log_weight_row, scale)
    of_out = (out_base, o_n, lse_base)
    # The groups that multiply are both workers, though the first might be the default partition: alike, they get the
    # same code.
    gl.warp_specialize(
        [
            (_produce, (descs, entries, plane, sizes, ring, DIM, K_BLOCK, TAIL, COV, RANKS, SLOTS)),
            (
                _consume,
                (
                    0,
                    of_q,
                    of_k,
                    of_out,
                    perm_ptr,
                    sizes,
                    queries,
                    ring,
                    DIM,
                    K_BLOCK,
                    TAIL,
                    COV,
                    RANKS,
                    BIAS,
                    LSE,
                    SLOTS,
                    q_d,
                    o_d,
                ),
            ),
            (
                _consume,
                (
                    1,
                    of_q,
                    of_k,
                    of_out,
                    perm_ptr,
                    sizes,
                    queries,
                    ring,
                    DIM,
                    K_BLOCK,
                    TAIL,
                    COV,
                    RANKS,
                    BIAS,
                    LSE,
                    SLOTS,
                    q_d,
                    o_d,
                ),
            ),
        ],
        [4, 4],
        [240, 240],
    )


def attend_gluon(inputs: AttendInputs, out: Tensor, lse: Tensor | None = None) -> tuple[int | None, ...]:
    """`attend_pointer` for 16-bit types, k and v in block order and query blocks of 128; the warps of its binary.

    Raises:
        ValueError: if k or v are not contiguous in block order, the scale is not positive, or blocks have other sizes.
    """
    q, k, v, geometry, tail = inputs.q, inputs.k, inputs.v, inputs.geometry, inputs.tail
    batch, heads, tokens, dim = q.shape
    if not (inputs.in_order and k.is_contiguous() and v.is_contiguous()):
        raise ValueError("the warp-specialised kernel reads K and V as contiguous (B, H, L, D) in block order")
    if not inputs.scale > 0.0:
        raise ValueError(f"the kernel takes a positive scale, not {inputs.scale}")
    if geometry.q_block != ROWS or geometry.k_block not in (64, 128) or dim not in SLOTS:
        blocks = f"blocks of {geometry.q_block}/{geometry.k_block} tokens, head size {dim}"
        raise ValueError(f"the kernel takes query blocks of {ROWS}, key blocks of 64 and 128, not {blocks}")
    unused = q
    bias = unused if inputs.key_bias is None else inputs.key_bias.float().contiguous()
    parts = dict.fromkeys(("k_mean", "v_mean", "u", "w", "cov"), k)
    if tail is not None:
        parts |= {name: x for name in parts if (x := getattr(tail, name)) is not None}
    with on_device(q):
        kernel = gluon_kernel[(geometry.q_total, batch * heads)](
            q,
            out,
            unused if lse is None else lse,
            geometry.perm,
            *inputs.selected,
            bias,
            unused if tail is None else tail.log_weight,
            *[_boxes(x) for x in (k, v, *parts.values())],
            inputs.scale,
            *strides(q),
            *strides(out),
            heads,
            tokens,
            geometry.video_tokens,
            geometry.q_video,
            geometry.q_total,
            geometry.k_video,
            geometry.k_total,
            0 if bias.shape[0] == 1 else tokens - geometry.video_tokens,
            DIM=dim,
            K_BLOCK=geometry.k_block,
            TAIL=tail is not None,
            COV=tail is not None and tail.cov is not None,
            RANKS=0 if tail is None else tail.ranks,
            BIAS=inputs.key_bias is not None,
            LSE=lse is not None,
            SLOTS=SLOTS[dim],
            **FUSED,
            num_warps=4,
            maxnreg=REGISTERS,
        )
    return (None if kernel is None else kernel.metadata.num_warps,)


def _boxes(x: Tensor) -> TensorDescriptor:
    """A contiguous (B, H, rows, ...) tensor as matrices, one a head, read in boxes of 64 rows and columns."""
    rows = x.shape[2]
    columns = x[0, 0, 0].numel()
    shape, steps = [x.shape[0] * x.shape[1], rows, columns], [rows * columns, columns, 1]
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
    return TensorDescriptor(x, shape, steps, [1, 64, 64], layout)
