"""Sparse attention as a torch custom op, so that torch.compile of a model around it neither breaks nor specialises.

On the CPU the op is the reference; on a GPU it is a Triton kernel.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ....kernels.types import AttendInputs, Geometry, Tail
from ...geometry.grid import TokenGrid
from ...geometry.layout import Layout, build_tables
from ..reference import attend_reference
from ..request import AttendRequest, new_output
from .launch import LAUNCHES
from .machine import runs_on


def op_name(name: str) -> str:
    """Name of an op of this copy of the package: two copies loaded under two names must not take each other's."""
    package = __name__.partition(".draftattn_core")[0]
    return f"draftattention::{name}" + (f"_{zlib.crc32(package.encode()):08x}" if package != "draftattention" else "")


@torch.library.custom_op(op_name("attend"), mutates_args=("out",))
def attend_into(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    perm: Tensor,
    keep: Tensor,
    tail: Sequence[Tensor],
    key_bias: Tensor | None,
    scale: float,
    sizes: Sequence[int],
    backend: str,
) -> None:
    """Attention over kept block pairs; arguments as in `AttendRequest`.

    Args:
        out: (B, H, L, D) to write, any strides.
        tail: `Tail.parts`, nothing without a tail.
        sizes: video tokens, extra tokens before them, tokens per query block and per key block.
        backend: name of the backend whose kernel it is on a GPU.
    """
    expansion = Tail(*tail) if tail else None
    video_tokens, extra_before, q_block, k_block = sizes
    if runs_on(q):
        from ....kernels.select import lists_of

        # The kernels walk these without strides.
        geometry = Geometry(q.shape[2], video_tokens, q_block, k_block, perm.contiguous())
        expansion = None if expansion is None else expansion.to(q.dtype)
        LAUNCHES[backend](AttendInputs(q, k, v, geometry, lists_of(keep), expansion, key_bias, scale), out)
        return
    after = q.shape[2] - video_tokens - extra_before
    layout = Layout(TokenGrid(1, 1, video_tokens), extra_before, after, q_block, k_block, order="raster")
    tables = replace(build_tables(layout, q.device), perm=perm, inverse=torch.argsort(perm))
    out.copy_(attend_reference(AttendRequest(q, k, v, tables, keep, expansion, key_bias, scale)))


@attend_into.register_fake
def _(*_: object) -> None:
    return None


def call_op(request: AttendRequest, backend: str = "triton") -> Tensor:
    """Output (B, H, L, D) of a request by the op."""
    out, layout, tail = new_output(request.q), request.tables.layout, request.tail
    attend_into(
        out,
        request.q,
        request.k,
        request.v,
        request.tables.perm,
        request.keep,
        [] if tail is None else list(tail.parts()),
        request.key_bias,
        request.scale,
        [layout.grid.tokens, layout.extra_before, layout.q_block, layout.k_block],
        backend,
    )
    return out
