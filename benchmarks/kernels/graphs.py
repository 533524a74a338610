"""Whether a whole call can be captured in a CUDA graph: replayed on other inputs it must give what an eager call gives.

Not a check of the kernels' results: one that fails is a missed requirement and withholds no speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.inputs import structured
from benchmarks.kernels.measure import after_failure
from benchmarks.kernels.ours import inputs_of
from benchmarks.kernels.plan import Shape
from benchmarks.kernels.row import Row
from benchmarks.kernels.timing import Clock
from benchmarks.kernels.variants import VARIANTS, Variant
from draftattention.draftattn_core import Policy
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.method.policy import TailName

# Enough programs that the backend takes its heads in two groups.
HEADS = 34
SHAPE = Shape("graph", (9, 45, 80), 193, HEADS, 128)
TAILS: dict[str, TailName | tuple[TailName, ...]] = {
    "one policy for all heads": "linear1",
    "tails by head": ("linear1", "mean") * (HEADS // 2),
}

Run = Callable[[], Tensor]
# Runs what it is given once, under capture, and returns what runs it again, and the output that is written then.
Capture = Callable[[Run], tuple[Callable[[], Any], Tensor]]


def graph_rows(variant: str, tails: str, device: torch.device) -> Iterator[Row]:
    """One row: `right`, `wrong`, `failed` with what capturing raised, or `unmeasured` off a GPU."""
    blank = Row("graph", f"whole call in a CUDA graph, {tails}", "unmeasured", by=variant)
    clock = Clock(device)
    if not clock.measures:
        yield replace(blank, note="no GPU")
        return
    why = VARIANTS[variant].refuses(device, SHAPE.dim)
    if why is not None:
        yield replace(blank, status="skipped", note=why)
        return
    try:
        yield replayed(blank, VARIANTS[variant], SHAPE, TAILS[tails], device, torch.bfloat16, captured)
    except Exception as failure:
        yield after_failure(blank, failure, clock)


def captured(run: Run) -> tuple[Callable[[], Any], Tensor]:
    """`run` in a CUDA graph. Raises what forbids capturing it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


def replayed(
    row: Row,
    variant: Variant,
    shape: Shape,
    tail: TailName | tuple[TailName, ...],
    device: torch.device,
    dtype: torch.dtype,
    capture: Capture,
) -> Row:
    """`row` with its status: capture a call, change its inputs in place, replay, compare with an eager call.

    Raises:
        Exception: what running or capturing the call raises.
    """
    inputs = structured(shape, device, dtype)
    tables, policy = build_tables(shape.layout, device), Policy(density=0.25, tail=tail)

    def run() -> Tensor:
        return variant.run(inputs_of(inputs, tables, policy))[0]

    # Compiles and loads, which no capture may.
    before = run().clone()
    replay, out = capture(run)
    for x, other in zip(inputs, structured(shape, device, dtype, seed=1)):
        x.copy_(other)
    replay()
    found, eager = out.clone(), run()
    if torch.equal(found, eager):
        return replace(row, status="right")
    share = float((found != eager).double().mean())
    said = "gives the captured call's output again" if torch.equal(found, before) else f"{share:.1%} of it differ"
    return replace(row, status="wrong", note=f"replayed on other inputs: {said}")
