"""energy: softmax mass between blocks, without the map (what CalibAtt calls block energy, arXiv 2603.05503, eq. 5).

One program computes one video query block of one head: a pass over all keys for the log-sum-exp of its rows, then a
second one for the sums of exp(score - LSE) over each key block. Both passes multiply Q and K, neither reads V. Where
the log-sum-exp is given, the first pass is left out. Scores are float32, in base 2.
"""

# Functions of Triton take no types; every other one here has them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import block_span, row_offsets
from .runtime import FUSED, on_device, strides
from .types import Geometry

_LENGTHS = ["heads", "tokens", "video_tokens", "k_video", "k_total", "bias_stride"]


@triton.jit
def _scores(
    q,
    k_base,
    perm_ptr,
    bias_row,
    block,
    k_n,
    k_d,
    k_video,
    video_tokens,
    tokens,
    factor,
    DIM: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Scores (rows, K_BLOCK) in base 2 of one key block; -inf in its empty slots."""
    LOG2E: tl.constexpr = 1.4426950408889634
    dims = tl.arange(0, DIM)
    start, end = block_span(block, K_BLOCK, k_video, video_tokens, tokens)
    positions = start + tl.arange(0, K_BLOCK)
    valid = positions < end
    rows = tl.load(perm_ptr + positions, mask=valid, other=0)
    k = tl.load(k_base + row_offsets(rows, k_n)[None, :] + dims[:, None] * k_d, mask=valid[None, :], other=0.0)
    scores = tl.dot(q, k, input_precision="ieee") * factor
    if BIAS:
        extra = positions - video_tokens
        bias = tl.load(bias_row + extra, mask=valid & (extra >= 0), other=0.0)
        scores += bias[None, :] * LOG2E
    return tl.where(valid[None, :], scores, float("-inf"))


@triton.jit(do_not_specialize=_LENGTHS)
def energy_kernel(
    q_ptr,
    k_ptr,
    perm_ptr,
    bias_ptr,
    lse_ptr,
    energy_ptr,
    scale,
    q_b,
    q_h,
    q_n,
    q_d,
    k_b,
    k_h,
    k_n,
    k_d,
    heads,
    tokens,
    video_tokens,
    k_video,
    k_total,
    bias_stride,
    DIM: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    LSE_GIVEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program: one video query block of one head. `lse` is read if it is given, and written otherwise."""
    LOG2E: tl.constexpr = 1.4426950408889634
    LN2: tl.constexpr = 0.6931471805599453
    row = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    dims = tl.arange(0, DIM)
    lanes = tl.arange(0, Q_BLOCK)
    positions = row * Q_BLOCK + lanes
    valid = positions < video_tokens
    q_rows = tl.load(perm_ptr + positions, mask=valid, other=0)
    q = tl.load(
        q_ptr + batch * q_b + head * q_h + row_offsets(q_rows, q_n)[:, None] + dims[None, :] * q_d,
        mask=valid[:, None],
        other=0.0,
    )
    k_base = k_ptr + batch * k_b + head * k_h
    bias_row = bias_ptr + batch * bias_stride
    factor = scale * LOG2E
    out_row = pair * tl.num_programs(0) + row

    if LSE_GIVEN:
        lse = tl.load(lse_ptr + out_row * Q_BLOCK + lanes) * LOG2E
    else:
        # The floor of the running maximum is finite, so that a block with every key hidden does not turn into NaN.
        top = tl.full([Q_BLOCK], -1.0e30, tl.float32)
        total = tl.zeros([Q_BLOCK], tl.float32)
        for block in tl.range(0, k_total, num_stages=STAGES):
            scores = _scores(
                q,
                k_base,
                perm_ptr,
                bias_row,
                block,
                k_n,
                k_d,
                k_video,
                video_tokens,
                tokens,
                factor,
                DIM,
                K_BLOCK,
                BIAS,
            )
            new_top = tl.maximum(top, tl.max(scores, 1))
            total = total * tl.math.exp2(top - new_top) + tl.sum(tl.math.exp2(scores - new_top[:, None]), 1)
            top = new_top
        lse = top + tl.math.log2(total)
        tl.store(lse_ptr + out_row * Q_BLOCK + lanes, tl.where(valid, lse * LN2, 0.0))

    count = tl.minimum(video_tokens - row * Q_BLOCK, Q_BLOCK).to(tl.float32)
    for block in tl.range(0, k_total, num_stages=STAGES):
        scores = _scores(
            q, k_base, perm_ptr, bias_row, block, k_n, k_d, k_video, video_tokens, tokens, factor, DIM, K_BLOCK, BIAS
        )
        mass = tl.where(valid[:, None], tl.math.exp2(scores - lse[:, None]), 0.0)
        tl.store(energy_ptr + out_row * k_total + block, tl.sum(tl.sum(mass, 1), 0) / count)


def energy(
    q: Tensor,
    k: Tensor,
    geometry: Geometry,
    scale: float,
    *,
    key_bias: Tensor | None = None,
    lse: Tensor | None = None,
    warps: int = 8,
    stages: int = 2,
) -> tuple[Tensor, Tensor]:
    """Mean mass of each video query block in each key block, extra blocks included, and the rows' log-sum-exp.

    Args:
        q, k: (B, H, L, D) in the host's token order, any strides; D a power of two from 16.
        key_bias: (B or 1, extra tokens) float32 contiguous, added to the logits of the extra tokens, or None.
        lse: (B, H, video q blocks, q block) float32 contiguous of an earlier call, used in place of the rows' own.

    Returns:
        energy (B, H, video q blocks, k blocks) float32, and `lse`, 0 past the end of a short block.
    """
    batch, heads, tokens, dim = q.shape
    rows, columns = geometry.q_video, geometry.k_total
    found = torch.empty(batch, heads, rows, columns, dtype=torch.float32, device=q.device)
    given = lse is not None
    if lse is None:
        lse = torch.empty(batch, heads, rows, geometry.q_block, dtype=torch.float32, device=q.device)
    biased = key_bias is not None and tokens > geometry.video_tokens
    with on_device(q):
        energy_kernel[(rows, batch * heads)](
            q,
            k,
            geometry.perm,
            key_bias if biased else q,
            lse,
            found,
            scale,
            *strides(q),
            *strides(k),
            heads,
            tokens,
            geometry.video_tokens,
            geometry.k_video,
            columns,
            key_bias.shape[1] if key_bias is not None and biased and key_bias.shape[0] > 1 else 0,
            DIM=dim,
            Q_BLOCK=geometry.q_block,
            K_BLOCK=geometry.k_block,
            BIAS=biased,
            LSE_GIVEN=given,
            STAGES=stages,
            **FUSED,
            num_warps=warps,
        )
    return found, lse
