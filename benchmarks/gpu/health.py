"""Whether a device works at all, before anything of ours is blamed: it multiplies, and Triton compiles and launches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.kernels.row import Row
from benchmarks.kernels.timing import Clock
from draftattention.draftattn_core.backends.triton import machine

DEVICE, ARCHITECTURE, MEMORY, PRODUCT, LAUNCH = "device", "architecture", "free memory, GiB", "a product", "a launch"


def health_rows(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    """Name, architecture, memory; a product of matrices; a kernel of ours, compiled and launched (or interpreted)."""
    clock = Clock(device)
    status = "right" if clock.measures else "unmeasured"
    name = torch.cuda.get_device_name(device) if clock.measures else "cpu"
    yield Row("health", DEVICE, status, note=name)
    yield Row("health", ARCHITECTURE, status, note=machine.architecture(device))
    if clock.measures:
        free, total = torch.cuda.mem_get_info(device)
        yield Row("health", MEMORY, status, value=free / 2**30, note=f"of {total / 2**30:.1f}")
    x = torch.eye(256, device=device, dtype=torch.bfloat16 if clock.measures else torch.float32)
    right = torch.equal(x @ x, x)
    yield Row("health", PRODUCT, status if right else "wrong", note="" if right else "one times one is not one")
    yield _launch(device, status)


def _launch(device: torch.device, status: Any) -> Row:
    missing = machine.triton_missing()
    if missing is not None:
        return Row("health", LAUNCH, "failed", note=missing)
    if not machine.runs_on(torch.empty(0, device=device)):
        return Row("health", LAUNCH, "skipped", note="no GPU, and nothing is interpreted")
    if device.type == "cuda" and not any(map(shutil.which, ("cc", "gcc", "clang", "cl"))):
        return Row("health", LAUNCH, "failed", note="no C compiler on the path: Triton's launcher needs one")
    from draftattention.kernels.select import lists_of

    keep = torch.tensor([[[[True, False, True]]]], device=device)
    found = lists_of(keep)
    right = found.counts.tolist() == [[[2]]] and found.lists[..., :2].tolist() == [[[[0, 2]]]]
    return Row("health", LAUNCH, status if right else "wrong", note="" if right else "a list of two is another")
