"""What the machine can do at best: a matrix product, a copy, and dense attention by each backend of torch's own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.kernels.inputs import FULL_SIZE_LIMITS, QKV, defined_rows, relative, sampled
from benchmarks.kernels.measure import measured
from benchmarks.kernels.plan import Shape
from benchmarks.kernels.row import Row, first_line
from benchmarks.kernels.timing import Clock

# Math is left out: it builds the whole L x L map.
DENSE = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_NO_KERNEL = ("No available kernel", "No viable backend")
CLOCK = "SM clock during that matmul, MHz"
MATMUL, COPY = "matmul bfloat16 8192^3, TFLOP/s", "copy, read plus write, TB/s"


def ceilings(clock: Clock) -> Iterator[Row]:
    """A bf16 matrix product and a copy of 4 GiB, on random data (zeros run faster than anything real)."""
    side, count = (8192, 1 << 30) if clock.measures else (8, 64)
    a, b = (torch.randn(side, side, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
    yield _ceiling(MATMUL, clock, lambda: a @ b, 2 * side**3)
    if clock.measures:
        yield _clocks(a, b)
    x = torch.randn(count, device=clock.device, dtype=torch.float32)
    y = torch.empty_like(x)
    yield _ceiling(COPY, clock, lambda: y.copy_(x), 2 * x.numel() * x.element_size())


def _clocks(a: Tensor, b: Tensor) -> Row:
    """SM clock while the device multiplies, as the driver tells it."""
    for _ in range(1500):
        a @ b
    command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw", "--format=csv,noheader,nounits", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        sm, memory, power = (value.strip() for value in said.split(",")[:3])
        row = Row("ceiling", CLOCK, "timed", value=float(sm), note=f"memory {memory} MHz, {power} W")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        row = Row("ceiling", CLOCK, "failed", note=first_line(error))
    torch.cuda.synchronize()
    return row


def _ceiling(what: str, clock: Clock, run: object, amount: int) -> Row:
    assert callable(run)
    timing = clock.time(run)
    if timing is None:
        return Row("ceiling", what, "unmeasured")
    return Row("ceiling", what, "timed", value=amount / timing.median / 1e12, spread=timing.spread)


def dense_rows(shape: Shape, qkv: QKV, clock: Clock) -> Iterator[Row]:
    """Dense attention by each backend of scaled_dot_product_attention that serves the shape, forced one at a time."""
    q, k, v = qkv
    rows = sampled(shape.tokens, shape.layout.grid.tokens).to(q.device)
    truth = defined_rows(qkv, rows, shape.dim**-0.5)
    limit = FULL_SIZE_LIMITS[q.dtype]

    def off(out: Tensor) -> float:
        return relative(out[0][:, rows], truth)

    for name, backend in DENSE.items():

        def run(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v)

        row = Row("dense", name, "failed", shape.name, density=1.0, executed=1.0, flops=shape.flops)
        row = replace(row, io_bytes=shape.bytes)
        row = measured(row, run, clock, off=off, limit=limit, error=off, memory=True, poisons=q)
        if row.status == "failed" and any(said in row.note for said in _NO_KERNEL):
            row = replace(row, status="skipped", note="torch has no kernel of this backend for the call")
        yield row
