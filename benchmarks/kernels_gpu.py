"""The measuring half of the kernel bench: everything here needs a CUDA device."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from draftattn_core import Policy
from draftattn_core.attention import Attention
from draftattn_core.backends import triton_door
from draftattn_core.backends.flex import attend_flex
from draftattn_core.backends.ops import call_op
from draftattn_core.backends.request import AttendRequest
from draftattn_core.backends.triton_backend import run_triton
from draftattn_core.layout import build_tables

from .kernels_plan import Shape, sampled_error

DENSE = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# Peers this bench can call, and those it only looks for.
UNWIRED_PEERS = ("flash_attn.cute", "cudnn", "block_sparse_attn", "flashinfer", "flash_attn_interface")


@dataclass(frozen=True)
class Row:
    """One line of the table; None where something was not measured.

    Attributes:
        seconds: median. `of_ideal`: seconds / (executed density x best dense seconds), 1 is ideal.
        tflops: on exactly computed pairs, tail not counted.
        extra_mib: peak memory beside the inputs.
        error: relative L2 against dense attention, on sampled rows of structured inputs.
    """

    shape: str
    what: str
    density: float | None
    executed: float | None = None
    seconds: float | None = None
    of_ideal: float | None = None
    tflops: float | None = None
    extra_mib: float | None = None
    error: float | None = None
    note: str = ""


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median of CUDA event times; the L2 cache is overwritten before each run."""
    cache = torch.empty(2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.int8, device="cuda")
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        cache.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def extra_mib(run: Callable[[], object]) -> float:
    """Peak memory of one run beside what is allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def ceilings(repeats: int) -> dict[str, float]:
    """bf16 matmul in TFLOP/s and device copy in TB/s (read plus write) on this machine, on random data."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matmul = 2 * 8192**3 / median_seconds(lambda: a @ b, repeats) / 1e12
    x = torch.randn(1 << 28, device="cuda", dtype=torch.float32)
    y = torch.empty_like(x)
    return {
        "matmul bf16 TFLOP/s": matmul,
        "copy TB/s": 2 * x.numel() * 4 / median_seconds(lambda: y.copy_(x), repeats) / 1e12,
    }


def dense_rows(shape: Shape, qkv: tuple[Tensor, Tensor, Tensor], repeats: int) -> list[Row]:
    """Dense attention with each backend of SDPA that serves the shape."""
    q, k, v = qkv
    flops = 4.0 * shape.layout.tokens**2 * shape.dim * shape.heads
    rows = []
    for name, backend in DENSE.items():

        def run(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v)

        try:
            seconds = median_seconds(run, repeats)
        except RuntimeError as error:
            rows.append(Row(shape.name, f"dense, {name}", None, note=f"skipped: {str(error).splitlines()[0][:80]}"))
            continue
        rows.append(Row(shape.name, f"dense, {name}", 1.0, 1.0, seconds, None, flops / seconds / 1e12))
    return rows


def our_rows(
    shape: Shape, qkv: tuple[Tensor, Tensor, Tensor], density: float, best_dense: float, repeats: int
) -> list[Row]:
    """The whole call, its parts, the tails beside each other, and lists out of order."""
    q, k, v = qkv
    tables = build_tables(shape.layout, q.device)
    scale = shape.dim**-0.5
    policy = Policy(density=density, tail="linear1")

    def whole(policy: Policy = policy) -> tuple[Tensor, AttendRequest]:
        return run_triton(q, k, v, tables, policy, None, scale)

    out, request = whole()
    executed = float(Attention(out, request, "triton").density())
    flops = 4.0 * executed * shape.layout.tokens**2 * shape.dim * shape.heads
    draft, tail, in_order = triton_door.prepare(q, k, v, tables, policy, copy=True)
    selected = triton_door.select(draft, tables, policy, scale)
    lists = (selected.lists, selected.counts)
    bare = AttendRequest(q, k, v, tables, request.keep, None, None, scale)

    def row(what: str, run: Callable[[], object], **figures: float) -> Row:
        seconds = median_seconds(run, repeats)
        ideal = seconds / (executed * best_dense)
        return Row(shape.name, what, density, executed, seconds, ideal, flops / seconds / 1e12, **figures)

    rows = [
        row("whole call, linear1", whole, extra_mib=extra_mib(whole), error=sampled_error(q, k, v, out)),
        row("  prepare", lambda: triton_door.prepare(q, k, v, tables, policy, copy=True)),
        row("  select", lambda: triton_door.select(draft, tables, policy, scale)),
        row("  attend with tail", lambda: call_op(request, lists=lists, in_order=in_order)),
        row("  attend without tail", lambda: call_op(bare, lists=lists, in_order=in_order)),
        row("  attend without tail, K and V gathered", lambda: call_op(bare, lists=lists)),
        row("  attend without tail, shuffled lists", lambda: call_op(bare, lists=shuffled(*lists), in_order=in_order)),
    ]
    for name in ("none", "mean", "linear0"):
        other = Policy(density=density, tail=name)
        error = sampled_error(q, k, v, whole(other)[0])
        rows.append(Row(shape.name, f"error with tail {name}", density, executed, error=error))
    return rows


def shuffled(lists: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The same lists in random order."""
    columns = torch.arange(lists.shape[-1], device=lists.device)
    key = torch.rand(lists.shape, device=lists.device).masked_fill_(columns >= counts[..., None], 2.0)
    return lists.gather(-1, key.argsort(-1)), counts


def peer_rows(
    shape: Shape, qkv: tuple[Tensor, Tensor, Tensor], density: float, best_dense: float, repeats: int
) -> list[Row]:
    """FlexAttention with our kept blocks, comfy_kitchen's sol_attn at our density, and who else could be imported."""
    q, k, v = qkv
    tables = build_tables(shape.layout, q.device)
    _, request = run_triton(q, k, v, tables, Policy(density=density, tail="none"), None, shape.dim**-0.5)
    executed = float(Attention(q, request, "triton").density())
    rows = []

    def add(what: str, run: Callable[[], Tensor]) -> None:
        try:
            out = run()
            seconds = median_seconds(run, repeats)
        except Exception as error:
            rows.append(Row(shape.name, what, density, note=f"failed: {type(error).__name__}: {str(error)[:80]}"))
            return
        flops = 4.0 * executed * shape.layout.tokens**2 * shape.dim * shape.heads
        error = sampled_error(q, k, v, out)
        ideal = seconds / (executed * best_dense)
        rows.append(
            Row(shape.name, what, density, executed, seconds, ideal, flops / seconds / 1e12, extra_mib(run), error)
        )

    add("FlexAttention, our kept blocks", lambda: attend_flex(request))
    if importlib.util.find_spec("comfy_kitchen") is None:
        rows.append(Row(shape.name, "comfy_kitchen.sol_attn", density, note="skipped: not importable"))
    elif shape.dim != 128 or shape.extra:
        rows.append(Row(shape.name, "comfy_kitchen.sol_attn", density, note="skipped: head size 128, video only"))
    else:
        from comfy_kitchen import sol_attn

        flat = [x.transpose(1, 2).contiguous() for x in qkv]
        add(
            "comfy_kitchen.sol_attn, top-k of our density", lambda: sol_attn(*flat, topk_ratio=executed).transpose(1, 2)
        )
    for name in UNWIRED_PEERS:
        found = importlib.util.find_spec(name.split(".")[0]) is not None
        note = "skipped: importable, but this bench has no adapter for it" if found else "skipped: not importable"
        rows.append(Row(shape.name, name, density, note=note))
    return rows
