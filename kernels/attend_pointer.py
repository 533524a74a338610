"""attend, pointer form: block-sparse flash attention over index lists, with a tail in the same online softmax.

Runs wherever Triton does (cp.async on NVIDIA from sm_80, plain loads on AMD). One program computes one query block of
one head: first the pooled keys of the video blocks that are not in its list (the tail, design.md section 1), then the
listed blocks. Scores, softmax and sums are float32, scores in base 2; weights enter the second product in the input
dtype. A row without any key gives 0 and LSE -inf. Listed keys may be INT8, and a tile's sums float16 (`codes.py`).
"""

# Functions of Triton take no types; every other one here has them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .codes import FP8_LIFT, row_codes
from .configs import AttendConfig
from .geometry import block_span, row_offsets
from .runtime import FUSED, on_device, strides
from .types import AttendInputs

_LENGTHS = ["heads", "tokens", "video_tokens", "q_video", "q_total", "k_video", "k_total", "bias_stride"]


@triton.jit(do_not_specialize=_LENGTHS)
def attend_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    perm_ptr,
    list_ptr,
    count_ptr,
    bias_ptr,
    log_weight_ptr,
    k_mean_ptr,
    v_mean_ptr,
    cov_ptr,
    u_ptr,
    w_ptr,
    k_scale_ptr,
    v_exponent_ptr,
    scale,
    q_b,
    q_h,
    q_n,
    q_d,
    k_b,
    k_h,
    k_n,
    k_d,
    v_b,
    v_h,
    v_n,
    v_d,
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
    bias_stride,
    DIM: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    IN_ORDER: tl.constexpr,
    TAIL: tl.constexpr,
    COV: tl.constexpr,
    RANKS: tl.constexpr,
    BIAS: tl.constexpr,
    LSE: tl.constexpr,
    EIGHT: tl.constexpr,
    HALF_SUMS: tl.constexpr,
    STAGES: tl.constexpr,
    TAIL_STAGES: tl.constexpr,
):
    """IN_ORDER: k and v hold tokens in block order already; otherwise their rows are gathered through `perm`.

    EIGHT: scores are products of INT8 codes (`codes.py`), k being those of shifted keys with a scale per block; Q gets
    its codes here. HALF_SUMS: v is float16, or FP8 (e4m3), in a power of two per block, a tile's sums are float16 and
    those of tiles float32, in the power of two of the block at hand.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    LN2: tl.constexpr = 0.6931471805599453
    M_SUB: tl.constexpr = Q_BLOCK // BLOCK_M
    N_SUB: tl.constexpr = K_BLOCK // BLOCK_N
    COV_SLICE: tl.constexpr = 16
    FP8: tl.constexpr = v_ptr.dtype.element_ty == tl.float8e4nv
    # FP8 has no numbers as small as most weights are: theirs are 2^LIFT times as large.
    LIFT: tl.constexpr = FP8_LIFT if FP8 else 0

    # Rows of extra tokens attend to everything: they start first, or they would finish last.
    index = tl.program_id(0) // M_SUB
    q_extra = q_total - q_video
    row = tl.where(index < q_extra, q_video + index, index - q_extra)
    pair = tl.program_id(1).to(tl.int64)
    batch = pair // heads
    head = pair % heads

    dims = tl.arange(0, DIM)
    lanes = tl.arange(0, BLOCK_N)
    q_start, q_end = block_span(row, Q_BLOCK, q_video, video_tokens, tokens)
    q_positions = q_start + (tl.program_id(0) % M_SUB) * BLOCK_M + tl.arange(0, BLOCK_M)
    q_valid = q_positions < q_end
    q_rows = tl.load(perm_ptr + q_positions, mask=q_valid, other=0)
    q = tl.load(
        q_ptr + batch * q_b + head * q_h + row_offsets(q_rows, q_n)[:, None] + dims[None, :] * q_d,
        mask=q_valid[:, None],
        other=0.0,
    )

    # The floor of the running maximum is finite, so that a block with every key masked does not turn into NaN.
    top = tl.full([BLOCK_M], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    factor = scale * LOG2E
    list_row = pair * q_total + row

    if EIGHT and HALF_SUMS:
        # Before the pooled keys: Q's own numbers then leave the registers (sm_120: 16 B of stack otherwise).
        codes, q_scale = row_codes(q.to(tl.float32))
    entries = list_ptr + list_row * k_total
    kept = tl.load(count_ptr + list_row)
    if TAIL:
        # The blocks that are not in the list stand at its end, the first one last. Rows of extra tokens have none.
        skipped_blocks = tl.where(row < q_video, k_total - kept, 0)
        first = pair * k_video * DIM
        g_lanes = tl.arange(0, BLOCK_G)
        # Lanes past the last block read it once more and give it no weight: nothing else has to be masked.
        last = tl.maximum(skipped_blocks, 1) - 1
        rest = entries + k_total - 1
        log_weights = log_weight_ptr + head * k_video
        # Numbers of a tile's blocks travel in a loop variable, like the list's below: no load to wait for. Where tiles
        # are not fetched ahead, neither are they (gfx1100: 28 B of stack otherwise with INT8 scores).
        if TAIL_STAGES > 1:
            columns = tl.load(rest - tl.minimum(g_lanes, last))
        for g_start in tl.range(0, skipped_blocks, BLOCK_G, num_stages=TAIL_STAGES):
            inside = g_start + g_lanes <= last
            if TAIL_STAGES == 1:
                columns = tl.load(rest - tl.minimum(g_start + g_lanes, last))
                log_weight = tl.load(log_weights + columns)
            else:
                log_weight = tl.load(log_weights + columns, mask=inside, other=float("-inf"))
            k_mean = tl.load(k_mean_ptr + first + (columns[None, :] * DIM + dims[:, None]))
            scores = tl.dot(q, k_mean, input_precision="ieee") * factor
            # All products with Q before the softmax, so that Q's registers are free after it.
            if RANKS > 0:
                across_ranks = columns[None, :] * (RANKS * DIM) + dims[:, None]
                down_ranks = columns[:, None] * (RANKS * DIM) + dims[None, :]
                u = tl.load(u_ptr + first * RANKS + across_ranks)
                along = tl.dot(q, u, input_precision="ieee")
            if RANKS > 1:
                u = tl.load(u_ptr + first * RANKS + DIM + across_ranks)
                along_2 = tl.dot(q, u, input_precision="ieee")
            if TAIL_STAGES == 1:
                # As a masked load it costs gfx1100 64 B of stack with INT8 scores and two ranks; this form, sm_80 8 B.
                scores += tl.where(inside, log_weight * LOG2E, float("-inf"))[None, :]
            else:
                scores += (log_weight * LOG2E)[None, :]
            new_top = tl.maximum(top, tl.max(scores, 1))
            weights = tl.math.exp2(scores - new_top[:, None])
            shrink = tl.math.exp2(top - new_top)
            total = total * shrink + tl.sum(weights, 1)
            acc = acc * shrink[:, None]
            top = new_top
            v_mean = tl.load(v_mean_ptr + first + (columns[:, None] * DIM + dims[None, :]))
            acc = tl.dot(weights.to(v_mean.dtype), v_mean, acc, input_precision="ieee")
            if TAIL_STAGES > 1:
                next_columns = tl.load(rest - tl.minimum(g_start + BLOCK_G + g_lanes, last))
            if RANKS > 0:
                w = tl.load(w_ptr + first * RANKS + down_ranks)
                acc = tl.dot((weights * along * scale).to(w.dtype), w, acc, input_precision="ieee")
            if RANKS > 1:
                w = tl.load(w_ptr + first * RANKS + DIM + down_ranks)
                acc = tl.dot((weights * along_2 * scale).to(w.dtype), w, acc, input_precision="ieee")
            if TAIL_STAGES > 1:
                columns = next_columns
    tail_top = top
    skipped = total
    if EIGHT:
        if HALF_SUMS:
            q = codes
        else:
            # Of the two, one number a row rests over the loop: with both, sm_90 parks 8 B on the stack.
            tail_top += tl.math.log2(skipped)
            # After the pooled keys: gfx1100 has no room for codes beside Q.
            q, q_scale = row_codes(q.to(tl.float32))
        # Always true, but of the layout that sums have: else the factor goes through shared memory at every step.
        row_factor = tl.where(top > -2.0e30, q_scale * factor, 0.0)
        block_scales = k_scale_ptr + pair * k_total
    if HALF_SUMS:
        exponents = v_exponent_ptr + pair * k_total
        exponent = 0.0

    steps = kept * N_SUB
    full_blocks = video_tokens // K_BLOCK
    if IN_ORDER:
        # Contiguous, with a stride the compiler knows.
        k_base, k_n = k_ptr + pair * tokens * DIM, DIM
        v_base, v_n = v_ptr + pair * tokens * DIM, DIM
    else:
        k_base = k_ptr + batch * k_b + head * k_h
        v_base = v_ptr + batch * v_b + head * v_h
    # The next index travels in a loop variable: loaded where it is needed, it would cost the pipeline a stage.
    block = tl.load(entries)
    for step in tl.range(0, steps, num_stages=STAGES):
        next_block = tl.load(entries + tl.minimum((step + 1) // N_SUB, k_total - 1))
        start, end = block_span(block, K_BLOCK, k_video, video_tokens, tokens)
        positions = start + (step % N_SUB) * BLOCK_N + lanes
        valid = positions < end
        if IN_ORDER:
            rows = positions
        else:
            rows = tl.load(perm_ptr + positions, mask=valid, other=0)
        k = tl.load(k_base + row_offsets(rows, k_n)[None, :] + dims[:, None] * k_d, mask=valid[None, :], other=0)
        if EIGHT:
            scores = tl.dot(q, k).to(tl.float32)
            unit = row_factor * tl.load(block_scales + block)
        else:
            scores = tl.dot(q, k, input_precision="ieee")
        if block >= full_blocks:
            if BIAS:
                extra = positions - video_tokens
                bias = tl.load(bias_ptr + batch * bias_stride + extra, mask=valid & (extra >= 0), other=0.0)
                if EIGHT:
                    scores += bias[None, :] * (LOG2E / unit)[:, None]
                else:
                    scores += bias[None, :] * (1.0 / scale)
            scores = tl.where(valid[None, :], scores, float("-inf"))
        # The scale is positive, so it may wait until after the maximum: with the subtraction it is one FFMA.
        if EIGHT:
            new_top = tl.maximum(top, tl.max(scores, 1) * unit)
            weights = tl.math.exp2(scores * unit[:, None] - (new_top - LIFT)[:, None])
        else:
            new_top = tl.maximum(top, tl.max(scores, 1) * factor)
            weights = tl.math.exp2(scores * factor - new_top[:, None])
        shrink = tl.math.exp2(top - new_top)
        if FP8:
            total = total * shrink + tl.sum(weights, 1) * 2.0**-LIFT
        else:
            total = total * shrink + tl.sum(weights, 1)
        top = new_top
        v = tl.load(v_base + row_offsets(rows, v_n)[:, None] + dims[None, :] * v_d, mask=valid[:, None], other=0.0)
        if HALF_SUMS:
            next_exponent = tl.load(exponents + block) - LIFT
            shrink *= tl.math.exp2(exponent - next_exponent)
            exponent = next_exponent
            sums = tl.dot(weights.to(v.dtype), v, out_dtype=tl.float16)
            acc = acc * shrink[:, None] + sums.to(tl.float32)
        else:
            acc = acc * shrink[:, None]
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        block = next_block

    divisor = tl.where(total == 0.0, 1.0, total)
    if HALF_SUMS:
        acc = acc * (tl.math.exp2(exponent) / divisor)[:, None]
    else:
        acc = acc / divisor[:, None]
    if COV:
        # The average matrix enters once per row, by the share of the softmax that went to skipped blocks. In slices of
        # the head size: whole, Q and the matrix would not fit beside the accumulator.
        if EIGHT and not HALF_SUMS:
            share = tl.math.exp2(tail_top - top) / divisor * scale
        else:
            share = skipped * tl.math.exp2(tail_top - top) / divisor * scale
        q_slices = q_ptr + batch * q_b + head * q_h + row_offsets(q_rows, q_n)[:, None]
        # DIM or nothing, written so that the compiler does not see it: unrolled, the loop would spill.
        for start in tl.range(0, tl.minimum((q_video - row) * DIM, DIM), 2 * COV_SLICE, num_stages=1):
            # Two products that depend on each other: Triton then gives both the accumulator's own layout.
            for half in tl.static_range(2):
                some = start + half * COV_SLICE + tl.arange(0, COV_SLICE)
                q_slice = tl.load(q_slices + some[None, :] * q_d, mask=q_valid[:, None], other=0.0)
                moved = (q_slice.to(tl.float32) * share[:, None]).to(q_slice.dtype)
                cov = tl.load(cov_ptr + pair * (DIM * DIM) + some[:, None] * DIM + dims[None, :])
                acc = tl.dot(moved, cov, acc, input_precision="ieee")
    # Rows again, not kept over the loops: their 64-bit offsets would hold registers all the way (volatile forbids it).
    out_rows = tl.load(perm_ptr + q_positions, mask=q_valid, other=0, volatile=True)
    tl.store(
        out_ptr + batch * o_b + head * o_h + row_offsets(out_rows, o_n)[:, None] + dims[None, :] * o_d,
        acc.to(out_ptr.dtype.element_ty),
        mask=q_valid[:, None],
    )
    if LSE:
        lse = (top + tl.math.log2(divisor)) * LN2
        lse = tl.where(total == 0.0, float("-inf"), lse)
        tl.store(lse_ptr + pair * tokens + out_rows, lse, mask=q_valid)


def attend_pointer(inputs: AttendInputs, config: AttendConfig, out: Tensor, lse: Tensor | None = None) -> None:
    """Attention over listed block pairs.

    Args:
        config: tile sizes, warps and stages; capped at the blocks.
        out: (B, H, L, D) to write, any strides.
        lse: (B, H, L) float32 contiguous to write the log of the softmax's denominator into (natural), or None.

    Raises:
        ValueError: if the scale is not positive, k or v not contiguous with `in_order`, a pooled tile too wide, or an
            LSE or gathering wanted of INT8 keys.
    """
    q, k, v, geometry, tail = inputs.q, inputs.k, inputs.v, inputs.geometry, inputs.tail
    batch, heads, tokens, _ = q.shape
    if not inputs.scale > 0.0:
        raise ValueError(f"the kernel takes a positive scale, not {inputs.scale}")
    if inputs.in_order and not (k.is_contiguous() and v.is_contiguous()):
        raise ValueError("K and V in block order have to be contiguous (B, H, L, D)")
    if config.block_g > 64:
        raise ValueError(f"no pooled tile of more than 64 blocks has been compiled for any GPU: {config.block_g}")
    if inputs.codes is not None and (lse is not None or not inputs.in_order):
        raise ValueError("INT8 keys are shifted and in block order: there is no LSE of them, and nothing to gather")
    # More keys in FP8 could add up to more than float16 holds.
    most = 64 if v.dtype == torch.float8_e4m3fn else geometry.k_block
    config = config.within(geometry.q_block, min(geometry.k_block, most))
    constants = constexprs(inputs, config, lse is not None)
    unused = q
    bias = unused if inputs.key_bias is None else inputs.key_bias.float().contiguous()
    parts = () if tail is None else tail.parts()
    codes = inputs.codes
    exponent = None if codes is None else codes.v_exponent
    grid = (geometry.q_total * (geometry.q_block // constants["BLOCK_M"]), batch * heads)
    with on_device(q):
        attend_kernel[grid](
            q,
            k,
            v,
            out,
            unused if lse is None else lse,
            geometry.perm,
            inputs.selected.lists,
            inputs.selected.counts,
            bias,
            *parts,
            *[unused] * (6 - len(parts)),
            *([unused] * 2 if codes is None else [codes.k_scale, unused if exponent is None else exponent]),
            inputs.scale,
            *strides(q),
            *strides(k),
            *strides(v),
            *strides(out),
            heads,
            tokens,
            geometry.video_tokens,
            geometry.q_video,
            geometry.q_total,
            geometry.k_video,
            geometry.k_total,
            0 if bias.shape[0] == 1 else geometry.tokens - geometry.video_tokens,
            **constants,
            **FUSED,
            num_warps=config.warps,
            num_stages=config.stages,
        )


def constexprs(inputs: AttendInputs, config: AttendConfig, lse: bool) -> dict[str, int | bool]:
    """Compile-time constants of a call with a configuration for its blocks: none depends on the number of tokens."""
    tail = inputs.tail
    return {
        "DIM": inputs.q.shape[3],
        "Q_BLOCK": inputs.geometry.q_block,
        "K_BLOCK": inputs.geometry.k_block,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_G": config.block_g,
        "IN_ORDER": inputs.in_order,
        "TAIL": tail is not None,
        "COV": tail is not None and tail.cov is not None,
        "RANKS": 0 if tail is None else tail.ranks,
        "BIAS": inputs.key_bias is not None,
        "LSE": lse,
        "EIGHT": inputs.codes is not None,
        "HALF_SUMS": inputs.codes is not None and inputs.codes.v_exponent is not None,
        "STAGES": config.stages,
        "TAIL_STAGES": config.tail_stages,
    }
