"""Sparse attention as a torch custom op, so that torch.compile of a model around it neither breaks nor specialises.

On the CPU the op is the reference; on a GPU it is the Triton kernel.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import torch
from torch import Tensor

from ...geometry.grid import TokenGrid
from ...geometry.layout import Layout, build_tables
from ...method.tail.expand import Tail
from ..reference import attend_reference
from ..request import AttendRequest, Listed, new_output
from . import door


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
    lists: Tensor | None,
    counts: Tensor | None,
    words: Tensor | None,
    log_count: Tensor | None,
    k_mean: Tensor | None,
    v_mean: Tensor | None,
    cov: Tensor | None,
    u: Tensor | None,
    w: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
    video_tokens: int,
    extra_before: int,
    q_block: int,
    k_block: int,
    in_order: bool,
) -> None:
    """Attention over kept block pairs; arguments as in `AttendRequest` and `Tail`.

    Args:
        out: (B, H, L, D) to write, any strides.
        lists, counts, words: `keep` as kernels walk it (`Listed`), if they have it at hand.
        in_order: k and v hold tokens in block order already.
    """
    tail = None
    if log_count is not None and k_mean is not None and v_mean is not None:
        tail = Tail(log_count, k_mean, v_mean, cov, u, w)
    if door.runs_on(q):
        # The kernels walk these without strides.
        geometry = door.geometry(q.shape[2], video_tokens, q_block, k_block, perm.contiguous())
        if lists is None or counts is None or words is None:
            listed = door.listed_of(keep)
        else:
            listed = Listed(lists.contiguous(), counts.contiguous(), words.contiguous())
        door.attend(q, k, v, geometry, listed, tail, key_bias, scale, in_order, out)
        return
    after = q.shape[2] - video_tokens - extra_before
    layout = Layout(TokenGrid(1, 1, video_tokens), extra_before, after, q_block, k_block, order="raster")
    tables = replace(build_tables(layout, q.device), perm=perm, inverse=torch.argsort(perm))
    if in_order:
        k, v = k.index_select(2, tables.inverse), v.index_select(2, tables.inverse)
    out.copy_(attend_reference(AttendRequest(q, k, v, tables, keep, tail, key_bias, scale)))


@attend_into.register_fake
def _(*_: object) -> None:
    return None


def call_op(
    request: AttendRequest,
    *,
    listed: Listed | None = None,
    in_order: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Output (B, H, L, D) of a request by the op.

    Args:
        listed: its selection as kernels walk it, if it is at hand.
        in_order: copies of k and v in block order, read instead of them.
        out: where to write it; None makes it.
    """
    out = new_output(request.q) if out is None else out
    layout, tail = request.tables.layout, request.tail
    k, v = (request.k, request.v) if in_order is None else in_order
    parts = (None,) * 6 if tail is None else (tail.log_count, tail.k_mean, tail.v_mean, tail.cov, tail.u, tail.w)
    attend_into(
        out,
        request.q,
        k,
        v,
        request.tables.perm,
        request.keep,
        *(listed or (None, None, None)),
        *parts,
        request.key_bias,
        request.scale,
        layout.grid.tokens,
        layout.extra_before,
        layout.q_block,
        layout.k_block,
        in_order is not None,
    )
    return out
