"""attend, warp-specialised form for Hopper (sm_90): one warp group fetches by TMA, two multiply 64 rows each by wgmma.

The same answer as `attend_pointer`, written for Triton's automatic warp specialisation, which takes one loop a kernel:
two kernels, the tail first, its normalised output and LSE resting in `out` and `lse` until the second one goes on from
there. Both read Q, K and V in block order, where a block is one box of memory. Has not yet run on a GPU.
"""

# Functions of Triton take no types; every other one here has them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import HopperConfig
from .geometry import block_span, row_offsets
from .runtime import FUSED, on_device, strides
from .types import AttendInputs, Geometry

# Both kernels are launched with one warp group; the compiler adds the others.
WARPS = 4
SPECIALISED_WARPS = 12
# Before, `make_tensor_descriptor` had another name and the allocator was one for the whole process.
OLDEST_TRITON = (3, 6)

_LENGTHS = ["heads", "tokens", "video_tokens", "q_video", "q_total", "k_video", "k_total", "slot_stride"]


@triton.jit
def _update(scores, top, total):
    """One step of the online softmax in base 2: weights, what earlier sums shrink by, new maximum, new total."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.math.exp2(scores - new_top[:, None])
    shrink = tl.math.exp2(top - new_top)
    return weights, shrink, new_top, total * shrink + tl.sum(weights, 1)


@triton.jit
def _finish(acc, top, total, out_ptr, lse_ptr, rows, valid, o_n, o_d, DIM: tl.constexpr, LSE: tl.constexpr):
    """Store normalised rows, and the natural log of their denominators."""
    LN2: tl.constexpr = 0.6931471805599453
    dims = tl.arange(0, DIM)
    divisor = tl.where(total == 0.0, 1.0, total)
    tl.store(
        out_ptr + row_offsets(rows, o_n)[:, None] + dims[None, :] * o_d,
        (acc * (1.0 / divisor)[:, None]).to(out_ptr.dtype.element_ty),
        mask=valid[:, None],
    )
    if LSE:
        lse = tl.where(total == 0.0, float("-inf"), (top + tl.math.log2(divisor)) * LN2)
        tl.store(lse_ptr + rows, lse, mask=valid)


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
        weights, shrink, top, total = _update(scores, top, total)
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
    _finish(
        acc, top, total, out_ptr + batch * o_b + head * o_h, lse_ptr + pair * tokens, rows, valid, o_n, o_d, DIM, True
    )


@triton.jit(do_not_specialize=_LENGTHS)
def listed_kernel(
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
    DIM: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
    LSE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Attention of one query block to its listed blocks, on top of what `tail_kernel` left. Q, K, V in block order."""
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
    # The floor of the running maximum is finite, so that a block with every key masked does not turn into NaN.
    if TAIL:
        # A normalised output with its LSE is an online softmax whose total is 1.
        seeded = valid & (positions < video_tokens)
        lse = tl.load(lse_base + rows, mask=seeded, other=float("-inf"))
        cells = row_offsets(rows, o_n)[:, None] + tl.arange(0, DIM)[None, :] * o_d
        acc = tl.load(out_base + cells, mask=seeded[:, None], other=0.0).to(tl.float32)
        total = tl.where(lse == float("-inf"), 0.0, 1.0)
        top = tl.maximum(lse * LOG2E, -1.0e30)
    else:
        acc = tl.zeros([Q_BLOCK, DIM], tl.float32)
        total = tl.zeros([Q_BLOCK], tl.float32)
        top = tl.full([Q_BLOCK], -1.0e30, tl.float32)

    factor = scale * LOG2E
    list_row = pair * q_total + row
    entries = list_ptr + list_row * k_total
    slots = slot_ptr + batch * slot_stride
    slot_desc = tl.make_tensor_descriptor(slots, [k_total, K_BLOCK], [K_BLOCK, 1], [1, K_BLOCK])
    # No branch, no index carried from step to step: either makes the compiler drop the specialisation in silence.
    for step in tl.range(0, tl.load(count_ptr + list_row), num_stages=STAGES, warp_specialize=True):
        block = tl.load(entries + step)
        start, _ = block_span(block, K_BLOCK, k_video, video_tokens, tokens)
        scores = tl.dot(q, k_desc.load([start, 0]).T, input_precision="ieee") * factor
        # By TMA like the rest: a vector of 128 loaded through pointers is taken for the producer's, which cannot.
        scores += slot_desc.load([block, 0])
        weights, shrink, top, total = _update(scores, top, total)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(q.dtype), v_desc.load([start, 0]), acc, input_precision="ieee")

    _finish(acc, top, total, out_base, lse_base, rows, valid, o_n, o_d, DIM, LSE)


def attend_hopper(
    inputs: AttendInputs, config: HopperConfig, out: Tensor, lse: Tensor | None = None
) -> tuple[int | None, ...]:
    """`attend_pointer` for k and v in block order; the warps of its binaries, None where Triton interprets.

    Copies Q into block order, as memory for TMA; `lse` is made for the call if there is a tail and none is given.
    """
    q, k, v, geometry, tail = inputs.q, inputs.k, inputs.v, inputs.geometry, inputs.tail
    batch, heads, tokens, dim = q.shape
    if not (inputs.in_order and k.is_contiguous() and v.is_contiguous()):
        raise ValueError("the warp-specialised kernel reads K and V as contiguous (B, H, L, D) in block order")
    wants_lse = lse is not None
    if lse is None and tail is not None:
        lse = torch.empty(batch, heads, tokens, dtype=torch.float32, device=q.device)
    queries = unused = q.index_select(2, geometry.perm)
    slots = key_slots(geometry, inputs.key_bias)
    log = slots if lse is None else lse

    # Descriptors made on the device need memory for themselves: the allocator is set in this context alone.
    run: Callable[..., Any] = contextvars.copy_context().run
    launched = []
    run(triton.set_allocator, lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=q.device))
    with on_device(q):
        if tail is not None:
            parts = tail.parts()
            kernel = run(
                tail_kernel[(geometry.q_video, batch * heads)],
                queries,
                out,
                log,
                geometry.perm,
                inputs.selected.words,
                *parts,
                *[unused] * (6 - len(parts)),
                inputs.scale,
                *strides(out),
                heads,
                tokens,
                geometry.video_tokens,
                geometry.q_total,
                geometry.k_video,
                geometry.k_total,
                DIM=dim,
                Q_BLOCK=geometry.q_block,
                BLOCK_G=config.block_g,
                COV=tail.cov is not None,
                RANKS=tail.ranks,
                STAGES=config.tail_stages,
                **FUSED,
                num_warps=WARPS,
                num_stages=config.tail_stages,
            )
            launched.append(kernel)
        kernel = run(
            listed_kernel[(geometry.q_total, batch * heads)],
            queries,
            k,
            v,
            out,
            log,
            geometry.perm,
            inputs.selected.lists,
            inputs.selected.counts,
            slots,
            inputs.scale,
            *strides(out),
            heads,
            tokens,
            geometry.video_tokens,
            geometry.q_video,
            geometry.q_total,
            geometry.k_video,
            geometry.k_total,
            0 if slots.shape[0] == 1 else slots.shape[1],
            DIM=dim,
            Q_BLOCK=geometry.q_block,
            K_BLOCK=geometry.k_block,
            TAIL=tail is not None,
            LSE=wants_lse,
            STAGES=config.stages,
            **FUSED,
            num_warps=WARPS,
            num_stages=config.stages,
        )
        launched.append(kernel)
    return tuple(None if x is None else x.metadata.num_warps for x in launched)


def lacking() -> str | None:
    """What the installed Triton lacks for these kernels, or None."""
    if tuple(map(int, re.findall(r"\d+", triton.__version__)[:2])) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"Triton {triton.__version__} does not specialise the warps of such kernels: {oldest} or newer is needed"
    return None


def key_slots(geometry: Geometry, key_bias: Tensor | None) -> Tensor:
    """What is added to the base-2 logit of each place of each key block, (B or 1, k blocks * k_block) float32.

    0, or a key bias, or -inf behind the last token of a short block.
    """
    size, video = geometry.k_block, geometry.video_tokens
    extra = geometry.tokens - video
    rows = 1 if key_bias is None else key_bias.shape[0]
    slots = torch.full((rows, geometry.k_total * size), -torch.inf, device=geometry.perm.device)
    slots[:, :video] = 0.0
    first = geometry.k_video * size
    slots[:, first : first + extra] = 0.0 if key_bias is None else key_bias.float() * 1.4426950408889634
    return slots
