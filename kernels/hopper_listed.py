"""attend on Hopper, the listed blocks: those that are not whole in one kernel, then all others in pairs in another.

Triton specialises one loop a kernel and no loop with a branch. A short block and the blocks of extra tokens, which may
have a bias, need something added to each of their scores: they are few, so they have a kernel of their own, and the
loop that takes the time adds nothing. Each kernel goes on from what the one before it left, since a normalised output
with its LSE is an online softmax whose total is 1. Q, K and V are read in block order, where a block is one box of
memory.
"""

# Functions of Triton take no types.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from .geometry import block_span, row_offsets
from .online_softmax import finish, update

_LENGTHS = ["heads", "tokens", "video_tokens", "q_video", "q_total", "k_video", "k_total", "slot_stride", "seeded"]


@triton.jit
def _whole_entries(entries, count, video_tokens, k_total, K_BLOCK: tl.constexpr):
    """How many entries of an ascending list are whole blocks of video: all but some of the last."""
    first_edge = video_tokens // K_BLOCK
    edges = 0
    for start in tl.range(0, k_total - first_edge, 128, num_stages=1):
        places = count - 1 - start - tl.arange(0, 128)
        blocks = tl.load(entries + places, mask=places >= 0, other=-1)
        edges += tl.sum((blocks >= first_edge).to(tl.int32), 0)
    return count - edges


@triton.jit
def _seed(out_base, lse_base, rows, seeded, o_n, o_d, Q_BLOCK: tl.constexpr, DIM: tl.constexpr):
    """The online softmax that an output and its LSE stand for; of rows that are not seeded, one without any key."""
    LOG2E: tl.constexpr = 1.4426950408889634
    lse = tl.load(lse_base + rows, mask=seeded, other=float("-inf"))
    cells = row_offsets(rows, o_n)[:, None] + tl.arange(0, DIM)[None, :] * o_d
    acc = tl.load(out_base + cells, mask=seeded[:, None], other=0.0).to(tl.float32)
    total = tl.where(lse == float("-inf"), 0.0, 1.0)
    # The floor of the running maximum is finite, so that a block with every key masked does not turn into NaN.
    return acc, tl.maximum(lse * LOG2E, -1.0e30), total


@triton.jit(do_not_specialize=_LENGTHS)
def edge_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    perm_ptr,
    list_ptr,
    count_ptr,
    slot_ptr,
    scale,
    o_b,
    o_h,
    o_n,
    o_d,
    heads,
    tokens,
    video_tokens,
    q_video,
    q_total,
    k_video,
    k_total,
    slot_stride,
    seeded,
    DIM: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Attention of one query block to those of its listed blocks that are short or hold extra tokens, on top of what
    `tail_kernel` left in the first `seeded` positions."""
    LOG2E: tl.constexpr = 1.4426950408889634
    row = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    base = pair * tokens * DIM
    q_desc = tl.make_tensor_descriptor(q_ptr + base, [tokens, DIM], [DIM, 1], [Q_BLOCK, DIM])
    k_desc = tl.make_tensor_descriptor(k_ptr + base, [tokens, DIM], [DIM, 1], [K_BLOCK, DIM])
    v_desc = tl.make_tensor_descriptor(v_ptr + base, [tokens, DIM], [DIM, 1], [K_BLOCK, DIM])
    slots = slot_ptr + batch * slot_stride
    slot_desc = tl.make_tensor_descriptor(slots, [k_total, K_BLOCK], [K_BLOCK, 1], [1, K_BLOCK])

    q_start, q_end = block_span(row, Q_BLOCK, q_video, video_tokens, tokens)
    q = q_desc.load([q_start, 0])
    positions = q_start + tl.arange(0, Q_BLOCK)
    valid = positions < q_end
    rows = tl.load(perm_ptr + positions, mask=valid, other=0)
    out_base = out_ptr + batch * o_b + head * o_h
    lse_base = lse_ptr + pair * tokens
    acc, top, total = _seed(out_base, lse_base, rows, valid & (positions < seeded), o_n, o_d, Q_BLOCK, DIM)

    factor = scale * LOG2E
    list_row = pair * q_total + row
    entries = list_ptr + list_row * k_total
    count = tl.load(count_ptr + list_row)
    whole = _whole_entries(entries, count, video_tokens, k_total, K_BLOCK)
    # No branch, no index carried from step to step: either makes the compiler drop the specialisation in silence.
    for step in tl.range(whole, count, num_stages=STAGES, warp_specialize=True):
        block = tl.load(entries + step)
        start, _ = block_span(block, K_BLOCK, k_video, video_tokens, tokens)
        scores = tl.dot(q, k_desc.load([start, 0]).T, input_precision="ieee") * factor
        # By TMA like the rest: a vector of 128 loaded through pointers is taken for the producer's, which cannot.
        scores += slot_desc.load([block, 0])
        weights, shrink, top, total = update(scores, top, total)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(q.dtype), v_desc.load([start, 0]), acc, input_precision="ieee")
    finish(acc, top, total, out_base, lse_base, rows, valid, o_n, o_d, DIM, True)


@triton.jit(do_not_specialize=_LENGTHS)
def whole_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    perm_ptr,
    list_ptr,
    count_ptr,
    scale,
    o_b,
    o_h,
    o_n,
    o_d,
    heads,
    tokens,
    video_tokens,
    q_video,
    q_total,
    k_total,
    seeded,
    DIM: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    LSE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Attention of one query block to those of its listed blocks that are whole, on top of what the kernels before left
    in the first `seeded` positions. PAIRS: two blocks a step under one softmax."""
    LOG2E: tl.constexpr = 1.4426950408889634
    # Rows of extra tokens attend to everything: they start first, or they would finish last.
    index = tl.program_id(0)
    q_extra = q_total - q_video
    row = tl.where(index < q_extra, q_video + index, index - q_extra)
    pair = tl.program_id(1).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    base = pair * tokens * DIM
    q_desc = tl.make_tensor_descriptor(q_ptr + base, [tokens, DIM], [DIM, 1], [Q_BLOCK, DIM])
    k_desc = tl.make_tensor_descriptor(k_ptr + base, [tokens, DIM], [DIM, 1], [K_BLOCK, DIM])
    v_desc = tl.make_tensor_descriptor(v_ptr + base, [tokens, DIM], [DIM, 1], [K_BLOCK, DIM])

    q_start, q_end = block_span(row, Q_BLOCK, q_video, video_tokens, tokens)
    q = q_desc.load([q_start, 0])
    positions = q_start + tl.arange(0, Q_BLOCK)
    valid = positions < q_end
    rows = tl.load(perm_ptr + positions, mask=valid, other=0)
    out_base = out_ptr + batch * o_b + head * o_h
    lse_base = lse_ptr + pair * tokens
    acc, top, total = _seed(out_base, lse_base, rows, valid & (positions < seeded), o_n, o_d, Q_BLOCK, DIM)

    factor = scale * LOG2E
    list_row = pair * q_total + row
    entries = list_ptr + list_row * k_total
    whole = _whole_entries(entries, tl.load(count_ptr + list_row), video_tokens, k_total, K_BLOCK)
    # The scale is positive, so it may wait until after the maximum: with the subtraction it is one FFMA.
    if PAIRS:
        for step in tl.range(0, whole, 2, num_stages=STAGES, warp_specialize=True):
            # An odd list's last block meets itself, and what it meets weighs nothing.
            both = step + 1 < whole
            start = tl.load(entries + step) * K_BLOCK
            start_2 = tl.load(entries + tl.where(both, step + 1, step)) * K_BLOCK
            scores = tl.dot(q, k_desc.load([start, 0]).T, input_precision="ieee")
            scores_2 = tl.dot(q, k_desc.load([start_2, 0]).T, input_precision="ieee")
            new_top = tl.maximum(top, tl.max(tl.maximum(scores, scores_2), 1) * factor)
            weights = tl.math.exp2(scores * factor - new_top[:, None])
            weights_2 = tl.math.exp2(scores_2 * factor - tl.where(both, new_top, float("inf"))[:, None])
            shrink = tl.math.exp2(top - new_top)
            total = total * shrink + tl.sum(weights + weights_2, 1)
            top = new_top
            acc = acc * shrink[:, None]
            acc = tl.dot(weights.to(q.dtype), v_desc.load([start, 0]), acc, input_precision="ieee")
            acc = tl.dot(weights_2.to(q.dtype), v_desc.load([start_2, 0]), acc, input_precision="ieee")
    else:
        for step in tl.range(0, whole, num_stages=STAGES, warp_specialize=True):
            start = tl.load(entries + step) * K_BLOCK
            scores = tl.dot(q, k_desc.load([start, 0]).T, input_precision="ieee")
            new_top = tl.maximum(top, tl.max(scores, 1) * factor)
            weights = tl.math.exp2(scores * factor - new_top[:, None])
            shrink = tl.math.exp2(top - new_top)
            total = total * shrink + tl.sum(weights, 1)
            top = new_top
            acc = acc * shrink[:, None]
            acc = tl.dot(weights.to(q.dtype), v_desc.load([start, 0]), acc, input_precision="ieee")
    finish(acc, top, total, out_base, lse_base, rows, valid, o_n, o_d, DIM, LSE)
