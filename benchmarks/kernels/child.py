"""One process of the bench: ``python -m benchmarks.kernels.child WORK DEVICE`` prints rows as they are found.

It loads what it needs, says so, and waits for a line on its standard input before it touches the device, so that it
can start up while another process is being timed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from .plan import Shape, shape_from
from .row import Row
from .timing import Clock

READY, DONE = "@ready", "@done"


def rows_of(work: dict[str, Any], device: torch.device) -> Iterator[Row]:
    """The rows of one job."""
    effort = work.get("effort", {})
    clock = Clock(device, **effort)
    dtype = torch.bfloat16 if clock.measures else torch.float32
    shapes: list[Shape] = [shape_from(plain) for plain in work.get("shapes", ())]
    kind = work["kind"]
    if kind == "check":
        from .checks import Check, check_rows

        names = ("variant", "dim", "dtype", "k_block", "tail")
        yield from check_rows(Check(**{name: work[name] for name in names}), device)
    elif kind == "dense":
        from .dense import ceilings, dense_rows
        from .inputs import structured

        yield from ceilings(clock)
        for shape in shapes:
            yield from dense_rows(shape, structured(shape, device, dtype), clock)
    elif kind == "ours":
        from .inputs import structured
        from .ours import our_rows
        from .variants import VARIANTS

        for shape in shapes:
            qkv = structured(shape, device, dtype)
            for density in work["densities"]:
                yield from our_rows(shape, qkv, density, VARIANTS[work["variant"]], clock)
    elif kind == "peer":
        from .peer_rows import peer_rows
        from .peers import load, missing

        for peer in load(work["peer"]):
            why = missing(peer, device.type)
            if why is not None:
                yield Row(peer.kind, peer.name, "skipped", by=peer.by, note=why)
                continue
            yield from peer_rows(peer, shapes, work["densities"], dtype, clock)
    else:
        raise ValueError(f"no job of kind {kind!r}")


def main(argv: list[str]) -> int:
    work, device = json.loads(argv[0]), torch.device(argv[1])
    print(READY, flush=True)
    if not sys.stdin.readline():
        return 1
    if device.type == "cuda":
        torch.cuda.set_device(0)
    with torch.no_grad():
        for row in rows_of(work, device):
            print(row.line(), flush=True)
    print(DONE, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
