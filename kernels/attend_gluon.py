"""attend, written out for Hopper (sm_90) in Gluon: one group of warps fetches by TMA, two multiply 64 query rows each.

The answer of `attend_pointer` in one kernel. Where Triton's automatic warp specialisation waits for every product, here
each group counts its own: the scores of the next keys and the sums of the last are under way together, and the softmax
begins when the scores are there, over the sums. Tiles come through one ring of slots in the order in which both groups
use them. Q is read in the host's order, K and V in block order. Has not yet run on a GPU.
"""

# Functions of Triton take no types; every other one here has them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .gluon_ring import produce, span, whole_entries
from .gluon_sums import consume
from .runtime import FUSED, on_device, strides
from .types import AttendInputs

# One group that fetches and two that multiply, of four warps each; the registers of a thread at launch.
WARPS = 12
REGISTERS = 168
# Query rows of a program, and tiles of 128 rows under way by head size: as many as fit beside Q.
ROWS = 128
SLOTS = {64: 8, 128: 6}

_LENGTHS = ["heads", "tokens", "video_tokens", "q_video", "q_total", "k_video", "k_total", "bias_stride"]


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
    q_start, q_end = span(row, 128, q_video, video_tokens, tokens)
    entries = list_ptr + list_row * k_total
    count = gl.load(count_ptr + list_row)
    whole = whole_entries(entries, count, video_tokens, k_total, K_BLOCK)
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
            (produce, (descs, entries, plane, sizes, ring, DIM, K_BLOCK, TAIL, COV, RANKS, SLOTS)),
            (
                consume,
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
                consume,
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
    unused = torch.empty(1, device=q.device)
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
