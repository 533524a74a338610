"""Timing one model, in a process of its own: one dense step, then one of every density a schedule asks for.

A run pays some things once, in its first sparse step: the error probe of every layer, index tables. That step is timed
apart, on its own session, after the kernels have been compiled and loaded.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.e2e.models import MODELS, Model, built_on, weight_bytes, without_masks
from benchmarks.e2e.runs import DENSE, FIRST, SPARSE
from benchmarks.kernels.row import Row, first_line
from draftattention.draftattn_core import Schedule, Settings
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.events import CallDone

# Room beside the weights for one step's activations: a guess that only decides whether it is worth trying.
_ROOM = 6 << 30


def step_rows(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    """A row per density, dense first, and one per first sparse step of a run; one saying why if it cannot be tried."""
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
        session = functools.partial(_Session, transformer, work["backend"], density, timesteps)
        row = replace(blank, what=SPARSE, density=density)
        yield _guarded(functools.partial(_sparse, row, session, step, timesteps, device), row)
        if density in work["first"]:
            row = replace(blank, what=FIRST, density=density, note="with what a run pays once")
            yield _guarded(functools.partial(_first, row, session, step, timesteps, device), row)


def _guarded(run: Callable[[], Row], row: Row) -> Row:
    try:
        return run()
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return replace(row, status="failed", note=f"out of memory: {first_line(error)}")


@dataclass
class _Steps:
    """Steps of one kind on one device, each timed where there are CUDA events."""

    device: torch.device
    finite: bool = True
    times: list[float] = field(default_factory=list)

    def run(self, step: Callable[[float], Tensor], timestep: float) -> None:
        """One that is timed."""
        if self.device.type != "cuda":
            self.warm_up(step, timestep)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        out = step(timestep)
        end.record()
        end.synchronize()
        self.times.append(begin.elapsed_time(end) / 1e3)
        self.finite &= bool(torch.isfinite(out).all())

    def warm_up(self, step: Callable[[float], Tensor], timestep: float) -> None:
        """One that is not."""
        self.finite &= bool(torch.isfinite(step(timestep)).all())

    def median(self, row: Row) -> Row:
        """`row` with what came of them."""
        if not self.finite:
            return replace(row, status="wrong", note="its output is not finite")
        if not self.times:
            return row
        median, peak = statistics.median(self.times), float(torch.cuda.max_memory_allocated(self.device))
        spread = (max(self.times) - min(self.times)) / median
        return replace(row, status="timed", seconds=median, spread=spread, extra_bytes=peak)


def _timed(row: Row, step: Callable[[float], Tensor], timesteps: list[float], device: torch.device) -> Row:
    """All steps but the first, which warms up."""
    steps = _Steps(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps.warm_up(step, timesteps[0])
    for timestep in timesteps[1:]:
        steps.run(step, timestep)
    return steps.median(row)


class _Session:
    """Draft attention on the transformer while inside, and what it says of its calls."""

    def __init__(self, transformer: nn.Module, backend: str, density: float, timesteps: list[float]) -> None:
        settings = Settings(schedule=Schedule(((0.0, density),)), backend=backend)
        self._apply = functools.partial(apply_draft_attention, transformer, settings, timesteps=timesteps)
        self._used: set[str] = set()

    def __enter__(self) -> _Session:
        self._handle = self._apply()
        self._handle.events.subscribe(CallDone, self._note)
        return self

    def _note(self, event: CallDone) -> None:
        self._used.add(event.result.backend)

    def __exit__(self, *_: object) -> None:
        self._report = self._handle.finish_run()
        self._handle.remove()

    def judged(self, row: Row) -> Row:
        """`row` with what was executed, by which backend; wrong if a single call ran dense."""
        row = replace(row, executed=self._report.executed_density(), by=", ".join(sorted(self._used)))
        dense = self._report.calls_dense()
        if not dense:
            return row
        said = ", ".join(f"{count} {reason}" for reason, count in dense.items())
        said = f"ran dense: {said}. {' '.join(self._report.notes)[:200]}"
        return replace(row, status="wrong", seconds=None, note=said)


def _sparse(
    row: Row,
    session: Callable[[], _Session],
    step: Callable[[float], Tensor],
    timesteps: list[float],
    device: torch.device,
) -> Row:
    """A later step at one density: what a run pays once is paid while it warms up."""
    with session() as one:
        row = _timed(row, step, timesteps, device)
    return one.judged(row)


def _first(
    row: Row,
    session: Callable[[], _Session],
    step: Callable[[float], Tensor],
    timesteps: list[float],
    device: torch.device,
) -> Row:
    """The first step of a session at one density, of as many sessions as other steps are timed; kernels are warm."""
    steps = _Steps(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    sessions = [session() for _ in timesteps[1:]]
    for one in sessions:
        with one:
            steps.run(step, timesteps[0])
    judged = [one.judged(steps.median(row)) for one in sessions]
    return next((found for found in judged if found.status == "wrong"), judged[-1])


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
