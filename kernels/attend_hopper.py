"""attend, warp-specialised form for Hopper (sm_90): one warp group fetches by TMA, two multiply 64 rows each by wgmma.

The same answer as `attend_pointer`, written for Triton's automatic warp specialisation, which takes one loop a kernel:
up to three kernels, the tail first, then blocks that are not whole, then all others. The normalised output and the LSE
of one rest in `out` and `lse` until the next goes on from there. Has not yet run on a GPU.
"""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from .configs import HopperConfig
from .hopper_listed import edge_kernel, whole_kernel
from .hopper_tail import tail_kernel
from .runtime import FUSED, on_device, strides
from .types import AttendInputs, Geometry

# All kernels are launched with one warp group; the compiler adds the others.
WARPS = 4
SPECIALISED_WARPS = 12
# Blocks up to this size are taken in pairs, so that a step has 128 keys either way.
PAIRED = 64
# Blocks that are not whole are few.
EDGE_STAGES = 2
# Before, `make_tensor_descriptor` had another name and the allocator was one for the whole process.
OLDEST_TRITON = (3, 6)


def attend_hopper(
    inputs: AttendInputs, config: HopperConfig, out: Tensor, lse: Tensor | None = None
) -> tuple[int | None, ...]:
    """`attend_pointer` for k and v in block order; the warps of its binaries, None where Triton interprets.

    Copies Q into block order, as memory for TMA; `lse` is made for the call if there is more than one kernel and none
    is given.

    Raises:
        ValueError: if k or v are not contiguous in block order, or the scale is not positive.
    """
    q, k, v, geometry, tail = inputs.q, inputs.k, inputs.v, inputs.geometry, inputs.tail
    batch, heads, tokens, dim = q.shape
    if not (inputs.in_order and k.is_contiguous() and v.is_contiguous()):
        raise ValueError("the warp-specialised kernel reads K and V as contiguous (B, H, L, D) in block order")
    if not inputs.scale > 0.0:
        raise ValueError(f"the kernel takes a positive scale, not {inputs.scale}")
    edges = geometry.video_tokens % geometry.k_block > 0 or tokens > geometry.video_tokens
    wants_lse = lse is not None
    if lse is None and (tail is not None or edges):
        lse = torch.empty(batch, heads, tokens, dtype=torch.float32, device=q.device)
    queries = unused = q.index_select(2, geometry.perm)
    log = torch.empty(1, device=q.device) if lse is None else lse
    lengths = heads, tokens, geometry.video_tokens, geometry.q_video, geometry.q_total
    blocks = {"DIM": dim, "Q_BLOCK": geometry.q_block, "K_BLOCK": geometry.k_block}

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
        seeded = 0 if tail is None else geometry.video_tokens
        listed = inputs.selected.lists, inputs.selected.counts
        grid = geometry.q_total, batch * heads
        if edges:
            slots = key_slots(geometry, inputs.key_bias)
            kernel = run(
                edge_kernel[grid],
                queries,
                k,
                v,
                out,
                log,
                geometry.perm,
                *listed,
                slots,
                inputs.scale,
                *strides(out),
                *lengths,
                geometry.k_video,
                geometry.k_total,
                0 if slots.shape[0] == 1 else slots.shape[1],
                seeded,
                **blocks,
                STAGES=EDGE_STAGES,
                **FUSED,
                num_warps=WARPS,
                num_stages=EDGE_STAGES,
            )
            launched.append(kernel)
            seeded = tokens
        kernel = run(
            whole_kernel[grid],
            queries,
            k,
            v,
            out,
            log,
            geometry.perm,
            *listed,
            inputs.scale,
            *strides(out),
            *lengths,
            geometry.k_total,
            seeded,
            **blocks,
            PAIRS=geometry.k_block <= PAIRED,
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
