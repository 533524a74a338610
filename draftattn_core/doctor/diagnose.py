"""The doctor: what this machine can run, checked by running it. `python run.py doctor`.

Every backend that `auto` may pick on a device computes a small call there and is compared with the reference, which
computes the same call in float64 on the CPU. Nothing is installed and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention import attend
from ..backends.call_kind import CallKind, Variant
from ..backends.nearest import Nearest
from ..backends.reference import attend_reference
from ..backends.registry import Backend, backends
from ..backends.request import AttendRequest
from ..geometry.grid import TokenGrid
from ..geometry.layout import Layout, build_tables
from ..method.policy import Policy, TailName
from ..method.tail.expand import make_tail
from ..method.tail.gain import relative_error
from ..phrase import LINES, LIST, Joined, Phrase, Text
from .machine import Machine, advice, inspect_machine

# Largest relative L2 error that rounding explains, with room for kernels that round the softmax weights as well.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
# Of a backend that computes in INT8 and selects by scores rounded to it.
NEAREST_TOLERANCE = 0.1
# An odd grid with a short last block, and extra tokens on both sides.
CHECK_GRID = TokenGrid(3, 9, 14)
CHECK_EXTRA = (5, 12)
CHECK_TAIL: TailName = "linear1"


@dataclass(frozen=True)
class BackendCheck:
    """What one backend made of the small call.

    Attributes:
        backend, device, dtype: what ran where.
        error: relative L2 error against the reference; None if it did not run.
        tolerance: largest error taken for right.
        refusal: why it will not run here, or what it raised; None if it ran.
        seconds: the whole check, compiling included.
        lost: what the run gives up by it, in words that follow "without"; None for nothing.
    """

    backend: str
    device: str
    dtype: str
    error: float | None
    tolerance: float
    refusal: Text | None
    seconds: float
    lost: Text | None = None

    @property
    def right(self) -> bool:
        return self.error is not None and self.error <= self.tolerance

    def text(self) -> Text:
        if self.error is None:
            return Phrase(
                "doctor_refused",
                "{backend} on {device} in {dtype}: will not run: {refusal}",
                backend=self.backend,
                device=self.device,
                dtype=self.dtype,
                refusal=self.refusal or "",
            )
        error, limit, seconds = f"{self.error:.1e}", f"{self.tolerance:.1e}", f"{self.seconds:.2f}"
        if self.right:
            return Phrase(
                "doctor_right",
                "{backend} on {device} in {dtype}: right: relative L2 error {error} against the reference "
                "(limit {limit}; {seconds} s with set-up)",
                backend=self.backend,
                device=self.device,
                dtype=self.dtype,
                error=error,
                limit=limit,
                seconds=seconds,
            )
        return Phrase(
            "doctor_wrong",
            "{backend} on {device} in {dtype}: WRONG, do not use it: relative L2 error {error} against the reference "
            "(limit {limit}; {seconds} s with set-up)",
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
            error=error,
            limit=limit,
            seconds=seconds,
        )

    def __str__(self) -> str:
        return str(self.text())


@dataclass(frozen=True)
class Diagnosis:
    """Facts, checks and advice.

    Attributes:
        machine: what was found.
        checks: one per backend, device and dtype.
        advice: what to do, most important first.
    """

    machine: Machine
    checks: tuple[BackendCheck, ...]
    advice: tuple[Text, ...]

    @property
    def works(self) -> bool:
        """Whether some backend runs here and is right."""
        return any(check.right for check in self.checks)

    def chosen(self) -> dict[str, str]:
        """Per device, the backend that `auto` takes: the first in the registry that serves it."""
        taken: dict[str, str] = {}
        for check in self.checks:
            if check.error is not None:
                taken.setdefault(check.device, check.backend)
        return taken

    def text(self) -> Text:
        """Several lines: what was found, what each backend made of the call, what to do."""
        facts = self.machine.facts()
        width = max(len(label) for label, _ in facts)
        lines: list[str] = [
            Phrase("doctor_fact", "{label}{gap}  {value}", label=label, gap=" " * (width - len(label)), value=value)
            for label, value in facts
        ]
        lines += ["", Phrase("doctor_backends", "Backends, each run on a small call:")]
        lost = {(check.device, check.backend): check.lost for check in self.checks if check.lost}
        told = [check.text() for check in self.checks]
        told += [_auto(name, device, lost.get((device, name))) for device, name in self.chosen().items()]
        lines += [Phrase("doctor_indented", "  {text}", text=text) for text in told]
        if not self.works:
            lines += ["", Phrase("doctor_none_works", "No backend works here: every call will run dense.")]
        nothing = Phrase("doctor_no_advice", "Nothing to do.")
        lines += ["", Phrase("doctor_advice", "What to do:") if self.advice else nothing]
        lines += [Phrase("doctor_item", "  - {text}", text=item) for item in self.advice]
        return Joined(lines, LINES)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "works": self.works,
            "facts": [list(fact) for fact in self.machine.facts()],
            "checks": [{**vars(check), "right": check.right} for check in self.checks],
            "auto": self.chosen(),
            "advice": list(self.advice),
        }


def _auto(backend: str, device: str, lost: Text | None) -> Text:
    if lost is None:
        return Phrase("doctor_auto", "`auto` takes {backend} on {device}.", backend=backend, device=device)
    return Phrase(
        "doctor_auto_without",
        "`auto` takes {backend} on {device}, without {lost}.",
        backend=backend,
        device=device,
        lost=lost,
    )


def check_backend(backend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int = 128) -> BackendCheck:
    """Run `backend` on a small call with extra tokens, a short last block and a linear tail, and measure its error."""

    def result(error: float | None, refusal: Text | None) -> BackendCheck:
        return BackendCheck(
            backend=backend.name,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            error=error,
            tolerance=TOLERANCE[dtype] if near is None else NEAREST_TOLERANCE,
            refusal=refusal,
            seconds=time.perf_counter() - start,
            lost=None if near is None else near.lost,
        )

    start, near = time.perf_counter(), None
    layout = Layout(CHECK_GRID, *CHECK_EXTRA)
    variants = (Variant(tail=CHECK_TAIL),)
    problem = CallKind(device, dtype, head_dim, layout.q_block, layout.k_block, variants)
    try:
        near = None if backend.nearest is None else backend.nearest(problem)
        refusal = None if near is not None else backend.refuses(problem)
    except Exception as problem_found:
        return result(None, _failed(problem_found))
    if refusal is not None:
        return result(None, refusal)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, layout.tokens, head_dim)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    exact = attend(q.double(), k.double(), v.double(), layout, Policy(0.3, tail=CHECK_TAIL), backend="reference")
    try:
        moved_q, moved_k, moved_v = (x.to(device) for x in (q, k, v))
        if near is not None:
            error = _error_of_nearest(backend, near, (moved_q, moved_k, moved_v))
            return result(error if math.isfinite(error) else math.inf, None)
        tables = build_tables(layout, device)
        out = backend.attend(
            AttendRequest(
                q=moved_q,
                k=moved_k,
                v=moved_v,
                tables=tables,
                keep=exact.request.keep.to(device),
                tail=make_tail(moved_k, moved_v, tables, CHECK_TAIL),
                key_bias=None,
                scale=exact.request.scale,
            )
        )
        error = relative_error(out.cpu(), exact.out).max().item()
    except Exception as problem_found:  # Whatever a broken driver or compiler raises is the finding.
        return result(None, _failed(problem_found))
    return result(error if math.isfinite(error) else math.inf, None)


def _error_of_nearest(backend: Backend, near: Nearest, qkv: tuple[Tensor, Tensor, Tensor]) -> float:
    """The largest error of a head in the nearest call that the backend serves, as it selected its blocks itself."""
    layout = Layout(CHECK_GRID, *CHECK_EXTRA, near.kind.q_block, near.kind.k_block)
    found = attend(*qkv, layout, near.policy(Policy(0.3, tail=CHECK_TAIL)), backend=backend.name)
    return float(relative_error(found.out, attend_reference(found.request).double()).max())


def _failed(error: Exception) -> Text:
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return Phrase("doctor_it_failed", "it failed: {error}", error=f"{type(error).__name__}: {first_line}")


def diagnose(devices: Sequence[str] | None = None) -> Diagnosis:
    """Inspect the machine and check every automatic backend on `devices` (default: the CPU and every accelerator)."""
    machine = inspect_machine()
    names = ["cpu", *(device.device for device in machine.accelerators)] if devices is None else devices
    checks = []
    for name in names:
        device = torch.device(name)
        for backend in backends():
            if not backend.automatic or device.type in backend.not_automatic_on:
                continue
            found = [check_backend(backend, device, dtype) for dtype in _dtypes(device)]
            # One refusal for all dtypes is one line.
            alike = len({check.refusal for check in found}) == 1 and found[0].refusal is not None
            checks += found[:1] if alike else found
    todo = advice(machine)
    wrong = sorted({check.backend for check in checks if check.error is not None and not check.right})
    if wrong:
        todo.insert(
            0,
            Phrase(
                "advice_wrong",
                "Backend {backends} computes wrong results here: please report this text.",
                backends=Joined(wrong, LIST),
            ),
        )
    return Diagnosis(machine, tuple(checks), tuple(todo))


def _dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """What models run in on that kind of device."""
    if device.type == "cpu":
        return (torch.float32, torch.bfloat16)
    return (torch.bfloat16, torch.float16)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the diagnosis; 0 if a backend works, 1 if none does."""
    parser = argparse.ArgumentParser(prog="doctor", description="What this machine can run, in plain words.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args(argv)
    diagnosis = diagnose()
    print(json.dumps(diagnosis.to_dict(), indent=2) if options.json else diagnosis.text())
    return 0 if diagnosis.works else 1
