"""A sweep of configurations of `attend`: what is tried, each compared before it is timed, and what is best.

It is a search along each number from the fixed row, then the best of each put together: a dozen binaries for a head
size. What counts is the time of `attend` with its tail at the balanced preset's density.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.checks import between_text
from benchmarks.kernels.inputs import FULL_SIZE_LIMITS, LIMITS, relative, sampled, structured
from benchmarks.kernels.measure import after_failure, guarded, measured
from benchmarks.kernels.ours import Call, executed_of, expected_of, make_call
from benchmarks.kernels.plan import TAIL, shape_from
from benchmarks.kernels.row import Row
from benchmarks.kernels.timing import Clock
from benchmarks.kernels.variants import inputs_for
from draftattention.draftattn_core import Layout, Policy, TokenGrid
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest, new_output
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.run.schedule import PRESET_DENSITY
from draftattention.kernels.configs import AttendConfig, fixed_attend
from draftattention.kernels.tuning import ALLOWED

DENSITY = PRESET_DENSITY["balanced"]
Q_BLOCK, K_BLOCK = 128, 64
# A configuration that gains less than this is not worth a binary of its own.
WORTH = 1.02
WITH_TAIL, WITHOUT = "with tail", "without tail"


def words(config: AttendConfig) -> str:
    """A configuration as a row names it."""
    tile = f"{config.block_m}x{config.block_n} g{config.block_g}"
    return f"{tile} w{config.warps} s{config.stages} t{config.tail_stages}"


def base(architecture: str, dim: int) -> AttendConfig:
    """The fixed row as the default blocks cut it."""
    return fixed_attend(architecture, dim).within(Q_BLOCK, K_BLOCK)


def candidates(start: AttendConfig) -> list[AttendConfig]:
    """The fixed row first, then what differs from it in one number (two where one alone makes no sense)."""
    found = [start]
    found += [replace(start, stages=start.stages + more) for more in (-1, 1, 2)]
    found += [replace(start, warps=warps) for warps in (4, 8, 16)]
    found += [replace(start, block_m=64, warps=warps) for warps in (4, 8)]
    found += [replace(start, block_n=start.block_n // 2, stages=min(8, 2 * start.stages))]
    found += [replace(start, block_g=pooled) for pooled in ALLOWED["block_g"]]
    found += [replace(start, tail_stages=stages) for stages in (1, 2, 3)]
    allowed = (one for one in found if all(value in ALLOWED[name] for name, value in asdict(one).items()))
    return list(dict.fromkeys(allowed))


def seconds_by_config(rows: Iterable[Row], among: Iterable[AttendConfig]) -> dict[AttendConfig, float]:
    """Time of `attend` with its tail, of the configurations that were timed."""
    found = {row.what: row.seconds for row in rows if row.kind == "sweep" and row.status == "timed" and row.seconds}
    named = ((config, found.get(f"{words(config)}, {WITH_TAIL}")) for config in among)
    return {config: seconds for config, seconds in named if seconds is not None}


def combined(start: AttendConfig, seconds: dict[AttendConfig, float]) -> AttendConfig:
    """The fixed row with every change that gained something by itself; where two change one number, the faster."""
    if start not in seconds:
        return start
    changes: dict[str, int] = {}
    for config in sorted(
        (one for one in seconds if seconds[one] * 1.01 < seconds[start]), key=lambda one: seconds[one]
    ):
        different = {name: x for name, x in asdict(config).items() if x != getattr(start, name)}
        if not set(different) & set(changes):
            changes |= different
    return replace(start, **changes)


def best(start: AttendConfig, seconds: dict[AttendConfig, float]) -> tuple[AttendConfig, float] | None:
    """The fastest and its gain over the fixed row; None where the fixed row holds or was not timed beside it."""
    if start not in seconds:
        return None
    fastest = min(seconds, key=lambda config: seconds[config])
    gain = seconds[start] / seconds[fastest]
    return None if gain < WORTH else (fastest, gain)


def _attend(config: AttendConfig) -> Callable[[AttendRequest, Call], Tensor]:
    from draftattention.kernels.attend_pointer import attend_pointer

    def attend(request: AttendRequest, call: Call) -> Tensor:
        out = new_output(request.q)
        attend_pointer(inputs_for(request, call.selected, call.in_order), config, out)
        return out

    return attend


def candidate_rows(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    """One row: whether a configuration gives what the reference gives on a small ragged call, with and without tail."""
    config, clock = AttendConfig(**work["config"]), Clock(device)
    dtype = torch.bfloat16 if clock.measures else torch.float32
    row = Row("sweep", words(config), "right" if clock.measures else "unmeasured", by="check")
    sizes, grid = ((Q_BLOCK, K_BLOCK), TokenGrid(5, 19, 23)) if clock.measures else ((32, 16), TokenGrid(2, 5, 7))
    layout = Layout(grid, 5, 3 * sizes[0] // 2 + 1, *sizes)
    bias = torch.linspace(-3, 0, layout.extra, device=device)[None]
    bias[:, ::5] = -torch.inf
    try:
        qkv = between_text(layout, work["dim"], device, dtype)
        call = make_call(qkv, build_tables(layout, device), Policy(density=0.3, tail=TAIL), bias)
        attend = _attend(config)
        off = max(relative(attend(one, call), attend_reference(one)) for one in (call.request, call.bare))
        clock.wait()
    except Exception as failure:
        yield after_failure(row, failure, clock)
        return
    right = off <= LIMITS[dtype]
    note = "" if right else f"off by {off:.1e}, the limit is {LIMITS[dtype]:.0e}"
    yield replace(row, off=off, status=row.status if right else "wrong", note=note)


def sweep_rows(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    """Two rows per configuration at full size: with the tail and without, compared with the definition, then timed."""
    clock, shape = Clock(device, **work.get("effort", {})), shape_from(work["shape"])
    dtype = torch.bfloat16 if clock.measures else torch.float32
    qkv, tables = structured(shape, device, dtype), build_tables(shape.layout, device)
    call = make_call(qkv, tables, Policy(density=DENSITY, tail=TAIL))
    rows = sampled(shape.tokens, shape.layout.grid.tokens).to(device)
    executed = executed_of(call.request)
    requests = {WITH_TAIL: call.request, WITHOUT: call.bare}
    truth = {name: expected_of(request, rows) for name, request in requests.items()}
    blank = Row("sweep", "", "failed", shape.name, density=DENSITY, executed=executed, flops=shape.flops * executed)

    def timed(config: AttendConfig) -> Iterator[Row]:
        attend = _attend(config)
        for name, request in requests.items():

            def off(out: Tensor, name: str = name) -> float:
                return relative(out[0][:, tables.perm[rows]], truth[name])

            def run(request: AttendRequest = request) -> Tensor:
                return attend(request, call)

            row = replace(blank, what=f"{words(config)}, {name}")
            yield measured(row, run, clock, off=off, limit=FULL_SIZE_LIMITS[dtype], poisons=qkv[0])

    for plain in work["configs"]:
        config = AttendConfig(**plain)
        yield from guarded(replace(blank, what=words(config)), timed(config), clock)
