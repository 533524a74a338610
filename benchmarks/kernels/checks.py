"""What must be right before any speed is told: every variant of our kernels on small ragged calls, by the reference."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.kernels.inputs import LIMITS, relative, structured
from benchmarks.kernels.measure import after_failure
from benchmarks.kernels.ours import inputs_of, make_call, shuffled
from benchmarks.kernels.plan import Shape
from benchmarks.kernels.row import Row
from benchmarks.kernels.selections import difference
from benchmarks.kernels.timing import Clock
from benchmarks.kernels.variants import VARIANTS
from draftattention.draftattn_core import Layout, Policy, TokenGrid
from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.backends.triton import launch
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.method.draft import draft_logits
from draftattention.draftattn_core.method.policy import TailName
from draftattention.kernels.types import Selected


@dataclass(frozen=True)
class Check:
    """One variant of a kernel at one head size, type, key block and tail, in a process of its own."""

    variant: str
    dim: int
    dtype: str
    k_block: int
    tail: str

    @property
    def name(self) -> str:
        return f"{self.variant}, head size {self.dim}, {self.dtype}, keys by {self.k_block}, tail {self.tail}"

    def work(self) -> dict[str, Any]:
        return {"kind": "check", **asdict(self)}


CASES = (("bfloat16", 64, "linear1"), ("bfloat16", 128, "mixed"), ("bfloat16", 64, "none"), ("float16", 64, "linear1"))
INTERPRETED_CASES = (("float32", 64, "linear1"), ("float16", 64, "linear1"), ("float32", 64, "mixed"))


def checks_for(device_type: str, quick: bool, variants: Iterable[str] = VARIANTS) -> list[Check]:
    """The checks to run on a kind of device, of some variants.

    Triton's interpreter knows no right bfloat16 products, so on the CPU float32 takes its place, and one head size
    stands for both with `quick`.
    """
    wanted = []
    for name in variants:
        for dim in (128, 64):
            if device_type == "cuda":
                wanted += [Check(name, dim, *case) for case in CASES]
            elif dim == 64 or not quick:
                wanted += [Check(name, dim, *case) for case in INTERPRETED_CASES]
    return wanted


def check_rows(check: Check, device: torch.device) -> Iterator[Row]:
    """One row: the largest error, what is wrong, or why the variant refuses the device."""
    start = time.monotonic()
    why = VARIANTS[check.variant].refuses(device, check.dim)
    if why is not None:
        yield Row("check", check.name, "skipped", by=check.variant, note=why)
        return
    dtype = getattr(torch, check.dtype)
    found: list[Found] = []
    raised = None
    try:
        found.extend(errors_of(check, device, dtype))
    except Exception as failure:
        # What was compared before is told too; a device that no longer answers ends the process here.
        raised = after_failure(Row("check", "", "failed"), failure, Clock(device)).note
    wrong = [one.said for one in found if not one.error <= one.limit]
    said = "; ".join(wrong)
    if raised is not None:
        said = "; ".join(filter(None, [said, f"raised after {len(found)} comparisons: {raised}"]))
    yield Row(
        "check",
        check.name,
        "wrong" if wrong else "failed" if raised is not None else "unmeasured",
        by=check.variant,
        off=max((one.error for one in found if one.limit), default=None),
        seconds=time.monotonic() - start,
        note=said or "; ".join(filter(None, (one.note for one in found))),
    )


class Found(NamedTuple):
    """One comparison: what, how far off it was, how far it may be, and what else is to be said.

    A limit of 0 means that things are counted, not measured.
    """

    name: str
    error: float
    limit: float
    note: str = ""

    @property
    def said(self) -> str:
        """What is wrong, in words."""
        if not self.limit:
            return f"{self.name}: {self.error:.0f} wrong"
        return f"{self.name} is off by {self.error:.1e}, the limit is {self.limit:.0e}"


def errors_of(check: Check, device: torch.device, dtype: torch.dtype) -> Iterator[Found]:
    """Two calls: one with masked text on both sides, one of video alone, as the bench times."""
    tiny = device.type == "cpu"
    sizes = (32, 16) if tiny else (128, check.k_block)
    grid = TokenGrid(3, 5, 7) if tiny else TokenGrid(5, 19, 23)
    variant = VARIANTS[check.variant]
    tail: TailName | tuple[TailName, ...] = ("linear2", "none") if check.tail == "mixed" else _tail(check.tail)
    policy = Policy(density=0.3, tail=tail)
    for with_text in (True, False):
        before, after = (5, 3 * sizes[0] // 2 + 1) if with_text else (0, 0)
        layout = Layout(grid, before, after, *sizes)
        q, k, v = between_text(layout, check.dim, device, dtype)
        bias = None
        if with_text:
            bias = torch.linspace(-3, 0, layout.extra, device=device)[None]
            bias[:, ::5] = -torch.inf
        tables = build_tables(layout, device)
        call = make_call((q, k, v), tables, policy, bias)
        truth = attend_reference(call.request)
        label = "with text" if with_text else "video alone"
        draft, _, _ = launch.prepare(inputs_of((q, k, v), tables, policy), copy=True)
        scores = draft_logits(draft, tables, call.request.scale)
        selected = difference(scores, call.request.keep, tables, policy)
        yield Found(f"selection {label}", float(selected.wrong), 0.0, selected.note)
        runs: dict[str, tuple[AttendRequest, Selected, tuple[Tensor, Tensor] | None]] = {
            "attend": (call.request, call.selected, call.in_order),
            "attend, lists shuffled": (call.request, shuffled(call.selected), call.in_order),
        }
        if variant.gathers:
            runs["attend, K and V gathered"] = (call.request, call.selected, None)
        for name, arguments in runs.items():
            yield Found(f"{name}, {label}", relative(variant.attend(*arguments), truth), LIMITS[dtype])
        bare = replace(call.request, tail=None)
        if not policy.drops:
            out = variant.attend(bare, call.selected, call.in_order)
            yield Found(f"attend without tail, {label}", relative(out, attend_reference(bare)), LIMITS[dtype])
        # Runs the backend's own check on first use, and is refused with its reason where that fails.
        public = attend(q, k, v, layout, policy, backend=variant.backend, key_bias=bias)
        yield Found(f"the public call, {label}", relative(public.out, truth), LIMITS[dtype])


def _tail(name: str) -> TailName:
    found: dict[str, TailName] = {"none": "none", "linear1": "linear1"}
    return found[name]


def between_text(layout: Layout, dim: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Structured video between text, as views of (1, L, H, D)."""
    shape = Shape("check", layout.grid.as_tuple(), 0, 2, dim)
    extra = torch.randn(3, 1, 2, layout.extra, dim, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    before, made = layout.extra_before, []
    for x, e in zip(structured(shape, device, dtype), extra):
        whole = torch.cat([e[:, :, :before], x, e[:, :, before:]], 2)
        made.append(whole.transpose(1, 2).contiguous().transpose(1, 2))
    return made[0], made[1], made[2]
