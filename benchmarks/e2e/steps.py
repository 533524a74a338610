"""Timing one model, in a process of its own: one dense step, then one of every density a schedule asks for."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from draftattn_core import Schedule, Settings
from draftattn_core.attention import Attention
from draftattn_core.hosts.diffusers import apply_draft_attention
from draftattn_core.report import Position

from ..kernels.row import Row, first_line
from .models import MODELS, Model, built_on, weight_bytes, without_masks

DENSE = "dense"
# Room beside the weights for one step's activations: a guess that only decides whether it is worth trying.
_ROOM = 6 << 30


def step_rows(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    """A row per density, dense first; one row saying why if the model cannot be tried."""
    model, repeats = MODELS[work["model"]], int(work["repeats"])
    measured = device.type == "cuda"
    dtype = torch.bfloat16
    blank = Row("step", DENSE, "unmeasured", model.name)
    weights = weight_bytes(model, not measured, dtype)
    if measured:
        free, total = torch.cuda.mem_get_info(device)
        if weights + _ROOM > free:
            said = f"weights take {weights / 2**30:.1f} GiB, {free / 2**30:.1f} of {total / 2**30:.1f} are free"
            yield replace(blank, status="skipped", note=f"fits this card only with weights offloaded: {said}")
            return
    torch.manual_seed(0)
    try:
        with built_on(device, dtype):
            transformer = model.build(not measured).eval()
        inputs = model.inputs(not measured, device, dtype)
        order, said = dense_order(model, device) if measured else ([], "")
    except torch.OutOfMemoryError as error:
        yield replace(blank, status="failed", note=f"out of memory while building: {first_line(error)}")
        return
    blank = replace(blank, io_bytes=float(weights))
    # Descending, so that they count as one run, and numbers that half precision has.
    timesteps = [960.0 - 32.0 * index for index in range(repeats + 1)]

    def step(timestep: float) -> Tensor:
        at = torch.tensor([timestep], device=device).to(model.timestep)
        with sdpa_kernel(order, set_priority=True) if order else contextlib.nullcontext():
            out: Tensor = transformer(**inputs, timestep=at, return_dict=False)[0]
        return out

    with without_masks(transformer):
        row = replace(blank, density=1.0, executed=1.0, by="SDPA", note=said)
        yield _guarded(lambda: _timed(row, step, timesteps, device), row)
    for density in work["densities"]:
        row = replace(blank, what="sparse", density=density)
        run = functools.partial(_sparse, row, transformer, work["backend"], step, timesteps, device)
        yield _guarded(run, row)


def _guarded(run: Callable[[], Row], row: Row) -> Row:
    try:
        return run()
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return replace(row, status="failed", note=f"out of memory: {first_line(error)}")


def _timed(row: Row, step: Callable[[float], Tensor], timesteps: list[float], device: torch.device) -> Row:
    """The median of all steps but the first, which warms up."""
    if device.type != "cuda":
        out = [step(timestep) for timestep in timesteps][-1]
        return row if bool(torch.isfinite(out).all()) else replace(row, status="wrong", note="its output is not finite")
    torch.cuda.reset_peak_memory_stats(device)
    out, times = step(timesteps[0]), []
    finite = bool(torch.isfinite(out).all())
    del out
    for timestep in timesteps[1:]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step(timestep)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    if not finite:
        return replace(row, status="wrong", note="its output is not finite")
    median = statistics.median(times)
    peak = float(torch.cuda.max_memory_allocated(device))
    return replace(row, status="timed", seconds=median, spread=(max(times) - min(times)) / median, extra_bytes=peak)


def _sparse(
    row: Row,
    transformer: nn.Module,
    backend: str,
    step: Callable[[float], Tensor],
    timesteps: list[float],
    device: torch.device,
) -> Row:
    """A step at one density; wrong if a single call of it ran dense."""
    assert row.density is not None
    used: set[str] = set()

    def note(result: Attention, _position: Position) -> None:
        used.add(result.backend)

    settings = Settings(schedule=Schedule(((0.0, row.density),)), backend=backend)
    with apply_draft_attention(transformer, settings, timesteps=timesteps) as handle:
        handle.session.on_call = note
        row = _timed(row, step, timesteps, device)
        report = handle.finish_run()
    row = replace(row, executed=report.executed_density(), by=", ".join(sorted(used)))
    dense = report.calls_dense()
    if dense:
        said = ", ".join(f"{count} {reason}" for reason, count in dense.items())
        row = replace(row, status="wrong", seconds=None, note=f"ran dense: {said}. {' '.join(report.notes)[:200]}")
    return row


def dense_order(model: Model, device: torch.device) -> tuple[list[SDPBackend], str]:
    """Backends of scaled_dot_product_attention, the fastest on this device at the model's size first."""
    heads, tokens, dim = model.attention
    q, k, v = (
        torch.randn(1, tokens, heads, dim, device=device, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)
    )
    times: dict[SDPBackend, float] = {}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            for _ in range(2):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                with sdpa_kernel(backend):
                    scaled_dot_product_attention(q, k, v)
                end.record()
                end.synchronize()
                times[backend] = begin.elapsed_time(end) / 1e3
        except RuntimeError:
            times.pop(backend, None)
            torch.cuda.synchronize(device)
    if not times:
        return [], "dense attention by torch's own choice"
    fastest = sorted(times, key=lambda backend: times[backend])
    said = ", ".join(f"{backend.name} {1e3 * times[backend]:.0f} ms" for backend in fastest)
    # The cross-attention may be of a form that only another one takes.
    return [*fastest, SDPBackend.MATH], f"dense attention by the fastest of {said}"
