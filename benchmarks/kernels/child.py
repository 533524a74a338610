"""One process of a bench: ``python -m benchmarks.kernels.child WORK DEVICE`` prints rows as they are found.

It loads what it needs, says so, and waits for a line on its standard input before it touches the device, so that it
can start up while another process is being timed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.kernels import dense, graphs, ours
from benchmarks.kernels.checks import Check, check_rows
from benchmarks.kernels.inputs import structured
from benchmarks.kernels.measure import guarded
from benchmarks.kernels.peer_rows import peer_rows
from benchmarks.kernels.peers import load, missing
from benchmarks.kernels.plan import Shape, shape_from
from benchmarks.kernels.row import DONE, READY, WHOLE, Row
from benchmarks.kernels.timing import Clock
from benchmarks.kernels.variants import VARIANTS, Variant

Handler = Callable[[dict[str, Any], torch.device], Iterator[Row]]


def _effort(work: dict[str, Any], device: torch.device) -> tuple[Clock, torch.dtype, list[Shape]]:
    clock = Clock(device, **work.get("effort", {}))
    shapes = [shape_from(plain) for plain in work.get("shapes", ())]
    return clock, torch.bfloat16 if clock.measures else torch.float32, shapes


def _dense(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    clock, dtype, shapes = _effort(work, device)
    yield from dense.ceilings(clock)
    for shape in shapes:
        yield from guarded(Row("dense", "SDPA", "failed", shape.name), _dense_rows(shape, dtype, clock), clock)


def _dense_rows(shape: Shape, dtype: torch.dtype, clock: Clock) -> Iterator[Row]:
    yield from dense.dense_rows(shape, structured(shape, clock.device, dtype), clock)


def _ours(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    clock, dtype, shapes = _effort(work, device)
    variant = VARIANTS[work["variant"]]
    for shape in shapes:
        blank = Row("ours", WHOLE, "failed", shape.name, variant.name)
        yield from guarded(blank, _our_rows(shape, dtype, work["densities"], variant, clock), clock)


def _our_rows(
    shape: Shape, dtype: torch.dtype, densities: list[float], variant: Variant, clock: Clock
) -> Iterator[Row]:
    qkv = structured(shape, clock.device, dtype)
    for density in densities:
        yield from ours.our_rows(shape, qkv, density, variant, clock)


def _peer(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    clock, dtype, shapes = _effort(work, device)
    for peer in load(work["peer"]):
        if peer.kind not in work["parts"]:
            continue
        why = missing(peer, device.type)
        if why is None:
            yield from peer_rows(peer, shapes, work["densities"], dtype, clock)
        else:
            yield Row(peer.kind, peer.name, "skipped", by=peer.by, note=why)


def _check(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    plain = {name: value for name, value in work.items() if name != "kind"}
    return check_rows(Check(**plain), device)


def _graph(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    return graphs.graph_rows(work["variant"], work["tails"], device)


def handler(kind: str) -> Handler:
    """What does the work of a kind.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind == "model":
        # Loads diffusers, which only this kind needs.
        from benchmarks.e2e.steps import step_rows

        return step_rows
    if kind in ("health", "candidate", "sweep"):
        from benchmarks.gpu import health, sweep

        return {"health": health.health_rows, "candidate": sweep.candidate_rows, "sweep": sweep.sweep_rows}[kind]
    if kind in ("check", "ours", "graph"):
        from draftattention.kernels import attend_pointer  # noqa: F401
    known: dict[str, Handler] = {"check": _check, "graph": _graph, "dense": _dense, "ours": _ours, "peer": _peer}
    if kind not in known:
        raise ValueError(f"no job of kind {kind!r}")
    return known[kind]


def _leave_with_the_bench() -> None:
    """The other end of standard input closes when the bench is gone."""
    sys.stdin.read()
    os._exit(1)


def main(argv: list[str]) -> int:
    work, device = json.loads(argv[0]), torch.device(argv[1])
    run = handler(work["kind"])
    print(READY, flush=True)
    if not sys.stdin.readline():
        return 1
    threading.Thread(target=_leave_with_the_bench, daemon=True).start()
    if device.type == "cuda":
        torch.cuda.set_device(0)
    with torch.no_grad():
        for row in run(work, device):
            print(row.line(), flush=True)
    print(DONE, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
