"""prepare: what one pass over Q and one over K and V leave for draft, selection, tail and `attend`.

From K and V, per key block: float32 means, spread, the leading singular pairs of its K-V cross-covariance by power
iterations on the tile that is in registers anyway, its part of the head's average matrix, and, if asked, copies of
both in block order, of K as INT8 too. Tensors are read through their strides.
"""

# Functions of Triton take no types; every other one here has them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .codes import block_codes, scaled_values
from .configs import PrepareConfig
from .geometry import block_span, row_offsets
from .runtime import FUSED, on_device, strides
from .types import Codes, Geometry, Tail

# Programs that share a head's blocks when there is an average matrix to sum: enough to fill a large GPU, few enough
# that the partial sums stay small. Fixed, so that the same call gives the same bits on every device.
_PROGRAMS = 512

_LENGTHS = ["heads", "tokens", "video_tokens", "k_video", "k_total", "per_program", "q_video"]


@dataclass(frozen=True)
class PreparedKeys:
    """What `prepare_keys` found.

    Attributes:
        k_mean: (B, H, g, D) float32 means over the real tokens of each video key block.
        spread: (B, H, g) float32 mean squared distance of a block's keys from their mean.
        k, v: (B, H, L, D) copies in block order, or None.
        tail: the tail's expansion in the dtype of k, or None.
        codes: by what k is read where it is INT8; the tail's mean keys then are without the shift, `k_mean` is not.
    """

    k_mean: Tensor
    spread: Tensor
    k: Tensor | None
    v: Tensor | None
    tail: Tail | None
    codes: Codes | None = None


@triton.jit
def _unit(row):
    """A row vector (D,) at length one; zero stays zero."""
    length = tl.sqrt(tl.sum(row * row, 0))
    return tl.where(length > 0.0, row / tl.maximum(length, 1.0e-30), 0.0)


@triton.jit
def _project_out(row, unit):
    """What `unit` leaves of a row: zero where that is rounding noise beside the row itself."""
    length = tl.sqrt(tl.sum(row * row, 0))
    row -= tl.sum(row * unit, 0) * unit
    row -= tl.sum(row * unit, 0) * unit
    left = tl.sqrt(tl.sum(row * row, 0))
    return tl.where(left > 1.0e-6 * length, row / tl.maximum(left, 1.0e-30), 0.0)


@triton.jit
def _back(row, first, second):
    """row @ first^T @ second for a row (D,) and tiles (n, D)."""
    return tl.sum(tl.sum(first * row[None, :], 1)[:, None] * second, 0)


@triton.jit
def _tiles(k_base, v_base, rows, valid, k_n, k_d, v_n, v_d, dims, BOTH: tl.constexpr):
    """K and, if asked, V of some rows; both under way before anything is done with either."""
    k = tl.load(k_base + row_offsets(rows, k_n)[:, None] + dims[None, :] * k_d, mask=valid[:, None], other=0.0)
    v = k
    if BOTH:
        v = tl.load(v_base + row_offsets(rows, v_n)[:, None] + dims[None, :] * v_d, mask=valid[:, None], other=0.0)
    return k, v


@triton.jit(do_not_specialize=_LENGTHS)
def prepare_keys_kernel(
    k_ptr,
    v_ptr,
    perm_ptr,
    ranks_ptr,
    k_mean_ptr,
    spread_ptr,
    k_pooled_ptr,
    v_pooled_ptr,
    u_ptr,
    w_ptr,
    cov_ptr,
    k_copy_ptr,
    v_copy_ptr,
    shift_ptr,
    k_scale_ptr,
    v_exponent_ptr,
    k_b,
    k_h,
    k_n,
    k_d,
    v_b,
    v_h,
    v_n,
    v_d,
    heads,
    tokens,
    video_tokens,
    k_video,
    k_total,
    per_program,
    DIM: tl.constexpr,
    K_BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
    COV: tl.constexpr,
    RANKS: tl.constexpr,
    COPY: tl.constexpr,
    EIGHT: tl.constexpr,
    HALVES: tl.constexpr,
    ITERATIONS: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """One program: `per_program` neighbouring key blocks of one head.

    EIGHT: keys lose the head's `shift`, and are copied as INT8 codes. HALVES: values are copied as float16, or
    FP8, in a power of two per block.
    """
    pair = tl.program_id(1).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    dims = tl.arange(0, DIM)
    lanes = tl.arange(0, K_BLOCK)
    cells = lanes[:, None] * DIM + dims[None, :]
    k_base = k_ptr + batch * k_b + head * k_h
    v_base = v_ptr + batch * v_b + head * v_h
    first = tl.program_id(0) * per_program
    last = tl.minimum(first + per_program, k_total)
    if COV:
        ranks = tl.load(ranks_ptr + head)
        cov = tl.zeros([DIM, DIM], tl.float32)
    if PREFETCH:
        # The next block is under way while this one is worked on; its row numbers two blocks ahead.
        start, end = block_span(first, K_BLOCK, k_video, video_tokens, tokens)
        rows = tl.load(perm_ptr + start + lanes, mask=start + lanes < end, other=0)
        next_k, next_v = _tiles(k_base, v_base, rows, start + lanes < end, k_n, k_d, v_n, v_d, dims, TAIL or COPY)
        start, end = block_span(first + 1, K_BLOCK, k_video, video_tokens, tokens)
        next_rows = tl.load(perm_ptr + start + lanes, mask=(start + lanes < end) & (first + 1 < last), other=0).to(
            tl.int32
        )
    for block in tl.range(first, last, num_stages=1):
        start, end = block_span(block, K_BLOCK, k_video, video_tokens, tokens)
        positions = start + lanes
        valid = positions < end
        if PREFETCH:
            k, v = next_k, next_v
            ahead, behind = block_span(block + 1, K_BLOCK, k_video, video_tokens, tokens)
            wanted = (ahead + lanes < behind) & (block + 1 < last)
            next_k, next_v = _tiles(k_base, v_base, next_rows, wanted, k_n, k_d, v_n, v_d, dims, TAIL or COPY)
            ahead, behind = block_span(block + 2, K_BLOCK, k_video, video_tokens, tokens)
            wanted = (ahead + lanes < behind) & (block + 2 < last)
            next_rows = tl.load(perm_ptr + ahead + lanes, mask=wanted, other=0).to(tl.int32)
        else:
            rows = tl.load(perm_ptr + positions, mask=valid, other=0)
            k, v = _tiles(k_base, v_base, rows, valid, k_n, k_d, v_n, v_d, dims, TAIL or COPY)
        if COPY:
            copied = (pair * tokens + start) * DIM
            if EIGHT:
                # For each block anew: kept, it spills beside the average matrix.
                shift = tl.load(shift_ptr + pair * DIM + dims)
                moved = tl.where(valid[:, None], k.to(tl.float32) - shift[None, :], 0.0)
                codes, k_scale = block_codes(moved)
                tl.store(k_copy_ptr + copied + cells, codes, mask=valid[:, None])
                tl.store(k_scale_ptr + pair * k_total + block, k_scale)
            else:
                tl.store(k_copy_ptr + copied + cells, k, mask=valid[:, None])
            if HALVES:
                FP8: tl.constexpr = v_copy_ptr.dtype.element_ty == tl.float8e4nv
                scaled, exponent = scaled_values(v.to(tl.float32), FP8)
                tl.store(v_copy_ptr + copied + cells, scaled, mask=valid[:, None])
                tl.store(v_exponent_ptr + pair * k_total + block, exponent)
            else:
                tl.store(v_copy_ptr + copied + cells, v, mask=valid[:, None])
        # Extra blocks are only copied: for them every mask below is empty.
        is_video = block < k_video
        video_dims = dims < tl.where(is_video, DIM, 0)
        video_rows = positions < tl.where(is_video, end, start)
        count = (end - start).to(tl.float32)
        cell = (pair * k_video + block) * DIM + dims
        keys = k.to(tl.float32)
        k_mean = tl.sum(keys, 0) / count
        keys = tl.where(valid[:, None], keys - k_mean[None, :], 0.0)
        tl.store(k_mean_ptr + cell, k_mean, mask=video_dims)
        spread = tl.sum(tl.sum(keys * keys, 1), 0) / count
        if is_video:
            tl.store(spread_ptr + pair * k_video + block, spread)
        if TAIL:
            values = v.to(tl.float32)
            v_mean = tl.sum(values, 0) / count
            if EIGHT:
                k_mean -= shift
            tl.store(k_pooled_ptr + cell, k_mean.to(k_pooled_ptr.dtype.element_ty), mask=video_dims)
            tl.store(v_pooled_ptr + cell, v_mean.to(v_pooled_ptr.dtype.element_ty), mask=video_dims)
        if COV:
            values = tl.where(valid[:, None], values - v_mean[None, :], 0.0)
            if RANKS > 0:
                # Subspace iteration from the value deviations of the tokens with the largest |k||v|.
                weight = tl.sqrt(tl.sum(keys * keys, 1)) * tl.sqrt(tl.sum(values * values, 1))
                lead = tl.argmax(weight, 0)
                w = tl.sum(tl.where((lanes == lead)[:, None], values, 0.0), 0)
                u = w
                if RANKS > 1:
                    second = tl.argmax(tl.where(lanes == lead, -1.0, weight), 0)
                    w_2 = tl.sum(tl.where((lanes == second)[:, None], values, 0.0), 0)
                    u_2 = w_2
                for _ in tl.range(0, ITERATIONS, num_stages=1):
                    u = _unit(_back(w, values, keys))
                    w = _back(u, keys, values)
                    if RANKS > 1:
                        u_2 = _project_out(_back(w_2, values, keys), u)
                        w_2 = _back(u_2, keys, values)
                u = tl.where(ranks > 0, u, 0.0)
                w = tl.where(ranks > 0, w / count, 0.0)
                cell = (pair * k_video + block) * RANKS * DIM + dims
                tl.store(u_ptr + cell, u.to(u_ptr.dtype.element_ty), mask=video_dims)
                tl.store(w_ptr + cell, w.to(w_ptr.dtype.element_ty), mask=video_dims)
                # K^T V - n u w^T is the same as (K - K u u^T)^T V.
                left = keys - tl.sum(keys * u[None, :], 1)[:, None] * u[None, :]
                if RANKS > 1:
                    u_2 = tl.where(ranks > 1, u_2, 0.0)
                    w_2 = tl.where(ranks > 1, w_2 / count, 0.0)
                    tl.store(u_ptr + cell + DIM, u_2.to(u_ptr.dtype.element_ty), mask=video_dims)
                    tl.store(w_ptr + cell + DIM, w_2.to(w_ptr.dtype.element_ty), mask=video_dims)
                    left -= tl.sum(keys * u_2[None, :], 1)[:, None] * u_2[None, :]
                keys = left
            keys = tl.where(video_rows[:, None], keys, 0.0)
            cov = tl.dot(tl.trans(keys.to(k.dtype)), values.to(k.dtype), cov, input_precision="ieee")
    if COV:
        cell = (pair * tl.num_programs(0) + tl.program_id(0)) * DIM * DIM
        tl.store(cov_ptr + cell + dims[:, None] * DIM + dims[None, :], cov)


@triton.jit(do_not_specialize=_LENGTHS)
def means_kernel(
    x_ptr,
    perm_ptr,
    mean_ptr,
    x_b,
    x_h,
    x_n,
    x_d,
    heads,
    video_tokens,
    q_video,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the mean over the video tokens of one block of one head."""
    block = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, DIM)
    positions = block * BLOCK + tl.arange(0, BLOCK)
    valid = positions < video_tokens
    rows = tl.load(perm_ptr + positions, mask=valid, other=0)
    base = x_ptr + (pair // heads) * x_b + (pair % heads) * x_h
    x = tl.load(base + row_offsets(rows, x_n)[:, None] + dims[None, :] * x_d, mask=valid[:, None], other=0.0)
    count = tl.minimum(video_tokens - block * BLOCK, BLOCK).to(tl.float32)
    mean = tl.sum(x.to(tl.float32), 0) / count
    tl.store(mean_ptr + (pair * q_video + block) * DIM + dims, mean)


def prepare_queries(q: Tensor, geometry: Geometry, config: PrepareConfig) -> Tensor:
    """Float32 means (B, H, query blocks, D) over the video tokens of each query block of q (B, H, L, D)."""
    batch, heads, _, dim = q.shape
    means = torch.empty(batch, heads, geometry.q_video, dim, dtype=torch.float32, device=q.device)
    with on_device(q):
        means_kernel[(geometry.q_video, batch * heads)](
            q,
            geometry.perm,
            means,
            *strides(q),
            heads,
            geometry.video_tokens,
            geometry.q_video,
            DIM=dim,
            BLOCK=geometry.q_block,
            **FUSED,
            num_warps=config.mean_warps,
        )
    return means


def prepare_keys(
    k: Tensor,
    v: Tensor,
    geometry: Geometry,
    config: PrepareConfig,
    *,
    log_weight: Tensor | None,
    ranks: Tensor | None,
    most_ranks: int,
    copy: bool,
    iterations: int,
    shift: Tensor | None = None,
    half_sums: bool = False,
    fp8: bool = False,
) -> PreparedKeys:
    """One pass over k and v (B, H, L, D), any strides.

    Args:
        log_weight: (H, g) float32, -inf for heads without a tail; None leaves the tail out.
        ranks: (H,) int32, ranks each head uses, -1 for heads without a linear term; None where no head has one.
        most_ranks: the largest of them, 0 to 2.
        copy: write K and V in block order.
        iterations: power iterations.
        shift: (B, H, D) float32 contiguous, to be subtracted from the keys, which are then copied as INT8; None copies
            them as they are.
        half_sums: copy V as float16 in powers of two, for sums in float16; with a shift only.
        fp8: copy it as FP8 (e4m3) instead, for the same sums.
    """
    batch, heads, tokens, dim = k.shape
    linear = ranks is not None and log_weight is not None
    blocks = geometry.k_video

    def new(*shape: int, dtype: torch.dtype = k.dtype) -> Tensor:
        return torch.empty(batch, heads, *shape, dtype=dtype, device=k.device)

    k_mean, spread = new(blocks, dim, dtype=torch.float32), new(blocks, dtype=torch.float32)
    eight, halves = copy and shift is not None, copy and shift is not None and half_sums
    copies = codes = None
    if copy:
        k_type, v_type = torch.int8 if eight else k.dtype, k.dtype
        if halves:
            v_type = torch.float8_e4m3fn if fp8 else torch.float16
        copies = new(tokens, dim, dtype=k_type), new(tokens, dim, dtype=v_type)
    if eight:
        exponent = new(geometry.k_total, dtype=torch.float32) if halves else None
        codes = Codes(new(geometry.k_total, dtype=torch.float32), exponent)
    pooled = (new(blocks, dim), new(blocks, dim)) if log_weight is not None else None
    pairs = (new(blocks, most_ranks, dim), new(blocks, most_ranks, dim)) if linear and most_ranks else None
    programs = max(1, min(geometry.k_total, _PROGRAMS // (batch * heads))) if linear else geometry.k_total
    per_program = triton.cdiv(geometry.k_total, programs)
    programs = triton.cdiv(geometry.k_total, per_program)
    partial = new(programs, dim, dim, dtype=torch.float32) if linear else None
    with on_device(k):
        prepare_keys_kernel[(programs, batch * heads)](
            k,
            v,
            geometry.perm,
            ranks if linear else k,
            k_mean,
            spread,
            *(pooled or (k, k)),
            *(pairs or (k, k)),
            k if partial is None else partial,
            *(copies or (k, k)),
            shift if eight else k,
            k if codes is None else codes.k_scale,
            k if codes is None or codes.v_exponent is None else codes.v_exponent,
            *strides(k),
            *strides(v),
            heads,
            tokens,
            geometry.video_tokens,
            blocks,
            geometry.k_total,
            per_program,
            DIM=dim,
            K_BLOCK=geometry.k_block,
            TAIL=log_weight is not None,
            COV=linear,
            RANKS=most_ranks if linear else 0,
            COPY=copy,
            EIGHT=eight,
            HALVES=halves,
            ITERATIONS=iterations,
            # Codes take registers, too: a second tile beside them was not tried.
            PREFETCH=linear and not eight and config.prefetches(geometry.k_block * dim),
            **FUSED,
            num_warps=config.warps,
        )
    cov = None
    if partial is not None and ranks is not None:
        cov = partial.sum(2) * ((ranks >= 0).float() / geometry.video_tokens)[None, :, None, None]
    tail = None
    if log_weight is not None and pooled is not None:
        tail = Tail(log_weight, *pooled, None if cov is None else cov.to(k.dtype), *(pairs or (None, None)))
    k_copy, v_copy = copies or (None, None)
    return PreparedKeys(k_mean, spread, k_copy, v_copy, tail, codes)
