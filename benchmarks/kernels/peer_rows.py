"""A peer's rows: compared with our reference on a small call, then with the definition at every shape, then timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.kernels.inputs import (
    FULL_SIZE_LIMITS,
    KeptBlocks,
    defined_rows,
    kept_blocks,
    relative,
    sampled,
    structured,
)
from benchmarks.kernels.measure import after_failure, guarded, measured, timed
from benchmarks.kernels.peers import Peer
from benchmarks.kernels.plan import Shape
from benchmarks.kernels.row import Row, first_line
from benchmarks.kernels.timing import Clock, poison
from draftattention.draftattn_core import TokenGrid
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.layout import Layout, build_tables


def peer_rows(
    peer: Peer, shapes: list[Shape], densities: list[float], dtype: torch.dtype, clock: Clock
) -> Iterator[Row]:
    """The gate's verdict if it is bad, else a row per shape and density."""
    blank = Row("peer", peer.name, "failed", by=peer.by, note=peer.note)
    if peer.selects == "dense":
        blank, densities = replace(blank, kind="dense"), [1.0]
    served = [shape for shape in shapes if shape.dim in peer.dims]
    if not served:
        yield replace(blank, status="skipped", note=f"takes head sizes {peer.dims} only")
        return
    small = gate_shape(peer, served[0], clock)
    try:
        why = peer.refuses(clock.device)
        if why is not None:
            yield replace(blank, status="skipped", note=why)
            return
        off = gate(peer, small, dtype, clock)
    except ImportError as failure:
        yield replace(blank, status="skipped", note=f"not importable: {first_line(failure)}")
        return
    except Exception as failure:
        yield replace(after_failure(blank, failure, clock), note=f"on a small call: {first_line(failure)}")
        return
    limit = peer.limit or FULL_SIZE_LIMITS[dtype]
    if not off <= limit:
        said = f"off by {off:.1e} on a small call, the limit is {limit:.0e}"
        yield replace(blank, status="wrong", off=off, note=said)
        return
    for shape in shapes:
        if shape.dim not in peer.dims:
            yield replace(blank, status="skipped", shape=shape.name, note=f"takes head sizes {peer.dims} only")
            continue
        row = replace(blank, shape=shape.name, io_bytes=shape.bytes)
        yield from guarded(row, _shape_rows(peer, shape, densities, dtype, clock, row), clock)


def _shape_rows(
    peer: Peer, shape: Shape, densities: list[float], dtype: torch.dtype, clock: Clock, blank: Row
) -> Iterator[Row]:
    """A row per density at one shape. Raises where its inputs cannot be made."""
    fitted = _fitted(peer, shape)
    qkv = structured(fitted, clock.device, dtype)
    rows = sampled(shape.tokens, shape.layout.grid.tokens).to(clock.device)
    perm = build_tables(fitted.layout, clock.device).perm
    dense = defined_rows(qkv, perm[rows], shape.dim**-0.5)
    for density in densities:
        row = replace(blank, density=density)
        try:
            call = kept_blocks(fitted, qkv, density)
            yield _timed_row(peer, row, call, rows, perm, dense, clock)
            del call
        except Exception as failure:
            yield after_failure(row, failure, clock)


def _fitted(peer: Peer, shape: Shape) -> Shape:
    """The shape with the peer's blocks; a dry run's small blocks are scaled likewise."""
    unit = shape.q_block // 128 if shape.q_block >= 128 else 1
    if shape.q_block < 128:
        ratio = peer.blocks[0] // peer.blocks[1]
        return shape.with_blocks(shape.q_block, shape.q_block // ratio)
    return shape.with_blocks(peer.blocks[0] * unit, peer.blocks[1] * unit)


def gate_shape(peer: Peer, like: Shape, clock: Clock) -> Shape:
    """A small ragged call with text."""
    grid, extra = ((5, 19, 23), 193) if clock.measures else ((2, 5, 9), 21)
    return _fitted(peer, Shape("gate", grid, extra, 2, like.dim, like.q_block, like.k_block))


def gate(peer: Peer, shape: Shape, dtype: torch.dtype, clock: Clock) -> float:
    """How far the peer is from our reference in float64 on a small call."""
    call = kept_blocks(shape, structured(shape, clock.device, dtype, seed=1), 0.3)
    poison(call.q)
    run = peer.all_exact(call) if peer.all_exact is not None else peer.make(call)
    out = run()
    clock.wait()
    return relative(out, reference(call, dense=peer.selects != "kept", in_host_order=peer.selects == "own"))


def reference(call: KeptBlocks, *, dense: bool, in_host_order: bool = False) -> Tensor:
    """`attend_reference` on the kept blocks of a call (`dense`: on all), tokens in block order or in the host's."""
    shape = call.shape
    layout = Layout(TokenGrid(1, 1, shape.tokens), 0, 0, shape.q_block, shape.k_block, order="raster")
    q, k, v = call.host if in_host_order else (call.q, call.k, call.v)
    keep = torch.ones_like(call.keep) if dense else call.keep
    request = AttendRequest(q, k, v, build_tables(layout, q.device), keep, None, None, call.scale)
    return attend_reference(request)


def _timed_row(peer: Peer, row: Row, call: KeptBlocks, rows: Tensor, perm: Tensor, dense: Tensor, clock: Clock) -> Row:
    shape = call.shape
    if peer.selects == "own":
        executed = peer.own_density(call) if peer.own_density is not None else None
    else:
        executed = 1.0 if peer.selects == "dense" else call.executed()
    row = replace(row, executed=executed, flops=None if executed is None else shape.flops * executed)
    in_host_order = peer.selects == "own"

    def of(out: Tensor) -> Tensor:
        return out[0][:, perm[rows] if in_host_order else rows]

    def error(out: Tensor) -> float:
        return relative(of(out), dense)

    poison(call.q)
    run = peer.make(call)
    if in_host_order:
        # What it should give with its own blocks is its own affair; its gate has shown that it attends.
        out = run()
        clock.wait()
        if not bool(torch.isfinite(out).all()):
            return replace(row, status="wrong", note="not finite")
        row = replace(row, error=error(out))
        del out
        return timed(row, run, clock, memory=True)
    expected = dense if peer.selects == "dense" else call.expected(rows)
    limit = FULL_SIZE_LIMITS[call.q.dtype]
    return measured(row, run, clock, off=lambda out: relative(of(out), expected), limit=limit, error=error, memory=True)
