"""attend on Hopper, first part: attention of video queries to the skipped blocks' expansions alone."""

# Functions of Triton take no types.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from .online_softmax import finish, update

_LENGTHS = ["heads", "tokens", "video_tokens", "q_total", "k_video", "k_total"]


@triton.jit(do_not_specialize=_LENGTHS)
def tail_kernel(
    q_ptr,
    out_ptr,
    lse_ptr,
    perm_ptr,
    words_ptr,
    log_weight_ptr,
    k_mean_ptr,
    v_mean_ptr,
    cov_ptr,
    u_ptr,
    w_ptr,
    scale,
    o_b,
    o_h,
    o_n,
    o_d,
    heads,
    tokens,
    video_tokens,
    q_total,
    k_video,
    k_total,
    DIM: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    BLOCK_G: tl.constexpr,
    COV: tl.constexpr,
    RANKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Attention of one query block of video to the skipped blocks' expansions alone. Q in block order."""
    LOG2E: tl.constexpr = 1.4426950408889634
    row = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    list_row = pair * q_total + row
    first = pair * k_video
    words = tl.cdiv(k_total, 32)
    words_row = words_ptr + list_row * words
    lanes = tl.arange(0, BLOCK_G)
    q_desc = tl.make_tensor_descriptor(q_ptr + pair * tokens * DIM, [tokens, DIM], [DIM, 1], [Q_BLOCK, DIM])
    k_desc = tl.make_tensor_descriptor(k_mean_ptr + first * DIM, [k_video, DIM], [DIM, 1], [BLOCK_G, DIM])
    v_desc = tl.make_tensor_descriptor(v_mean_ptr + first * DIM, [k_video, DIM], [DIM, 1], [BLOCK_G, DIM])
    if RANKS > 0:
        pairs = first * RANKS * DIM
        u_desc = tl.make_tensor_descriptor(u_ptr + pairs, [k_video, DIM], [RANKS * DIM, 1], [BLOCK_G, DIM])
        w_desc = tl.make_tensor_descriptor(w_ptr + pairs, [k_video, DIM], [RANKS * DIM, 1], [BLOCK_G, DIM])
    if RANKS > 1:
        u_desc_2 = tl.make_tensor_descriptor(u_ptr + pairs + DIM, [k_video, DIM], [RANKS * DIM, 1], [BLOCK_G, DIM])
        w_desc_2 = tl.make_tensor_descriptor(w_ptr + pairs + DIM, [k_video, DIM], [RANKS * DIM, 1], [BLOCK_G, DIM])

    q = q_desc.load([row * Q_BLOCK, 0])
    top = tl.full([Q_BLOCK], -1.0e30, tl.float32)
    total = tl.zeros([Q_BLOCK], tl.float32)
    acc = tl.zeros([Q_BLOCK, DIM], tl.float32)
    factor = scale * LOG2E
    for start in tl.range(0, k_video, BLOCK_G, num_stages=STAGES, warp_specialize=True):
        columns = start + lanes
        inside = columns < k_video
        bits = tl.load(words_row + start // 32)
        if BLOCK_G > 32:
            bits = tl.where(lanes < 32, bits, tl.load(words_row + tl.minimum(start // 32 + 1, words - 1)))
        kept = (bits >> (lanes % 32)) & 1
        log_weight = tl.load(log_weight_ptr + head * k_video + columns, mask=inside, other=float("-inf"))
        scores = tl.dot(q, k_desc.load([start, 0]).T, input_precision="ieee") * factor
        if RANKS > 0:
            along = tl.dot(q, u_desc.load([start, 0]).T, input_precision="ieee")
        if RANKS > 1:
            along_2 = tl.dot(q, u_desc_2.load([start, 0]).T, input_precision="ieee")
        scores += tl.where(kept != 0, float("-inf"), log_weight * LOG2E)[None, :]
        weights, shrink, top, total = update(scores, top, total)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(q.dtype), v_desc.load([start, 0]), acc, input_precision="ieee")
        if RANKS > 0:
            acc = tl.dot((weights * along * scale).to(q.dtype), w_desc.load([start, 0]), acc, input_precision="ieee")
        if RANKS > 1:
            moved = (weights * along_2 * scale).to(q.dtype)
            acc = tl.dot(moved, w_desc_2.load([start, 0]), acc, input_precision="ieee")

    if COV:
        cov_desc = tl.make_tensor_descriptor(cov_ptr + pair * DIM * DIM, [DIM, DIM], [DIM, 1], [DIM, DIM])
        acc += tl.dot(q, cov_desc.load([0, 0]), input_precision="ieee") * (total * scale)[:, None]
    positions = row * Q_BLOCK + tl.arange(0, Q_BLOCK)
    valid = positions < video_tokens
    rows = tl.load(perm_ptr + positions, mask=valid, other=0)
    finish(
        acc, top, total, out_ptr + batch * o_b + head * o_h, lse_ptr + pair * tokens, rows, valid, o_n, o_d, DIM, True
    )
