"""One row from one callable: run it, compare it with what it should give, and time it only if it is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.kernels.row import Row, first_line
from benchmarks.kernels.timing import Clock, poison

Figure = Callable[[Tensor], float]


def measured(
    row: Row,
    run: Callable[[], Tensor],
    clock: Clock,
    *,
    off: Figure,
    limit: float,
    error: Figure | None = None,
    memory: bool = False,
    poisons: Tensor | None = None,
) -> Row:
    """`row` with its status and figures filled in.

    Args:
        row: what is measured; its status is not looked at.
        run: gives the output.
        off: how far an output is from what it should be; more than `limit` is wrong, and no speed is told.
        error: how far it is from dense attention, or None.
        memory: measure peak memory too, by one more run.
        poisons: shaped like the output, see `poison`.

    Raises:
        Exception: if the device no longer answers after an error; what else would run in this process is lost.
    """
    try:
        if poisons is not None:
            poison(poisons)
        out = run()
        clock.wait()
        found = off(out) if bool(torch.isfinite(out).all()) else float("inf")
        row = replace(row, off=found, error=None if error is None else error(out))
        del out
        if not found <= limit:
            said = "not finite" if found == float("inf") else f"off by {found:.1e}, the limit is {limit:.0e}"
            return replace(row, status="wrong", note=said)
        return timed(row, run, clock, memory=memory)
    except Exception as failure:
        return after_failure(row, failure, clock)


def timed(row: Row, run: Callable[[], object], clock: Clock, *, memory: bool = False) -> Row:
    """`row` with its speed, for what has been compared already. Raises what `run` raises."""
    timing = clock.time(run)
    if timing is None:
        return replace(row, status="unmeasured")
    extra = clock.extra_bytes(run) if memory else None
    return replace(row, status="timed", seconds=timing.median, spread=timing.spread, extra_bytes=extra)


def after_failure(row: Row, failure: Exception, clock: Clock) -> Row:
    """The row of something that raised.

    Raises:
        Exception: what the device says, if it no longer answers.
    """
    clock.wait()
    if isinstance(failure, torch.OutOfMemoryError) and clock.measures:
        torch.cuda.empty_cache()
    return replace(row, status="failed", note=first_line(failure))


def guarded(blank: Row, rows: Iterator[Row], clock: Clock) -> Iterator[Row]:
    """The rows; where making them raises, `blank` says what, and whatever comes after these rows goes on.

    Raises:
        Exception: what the device says, if it no longer answers.
    """
    try:
        yield from rows
    except Exception as failure:
        yield after_failure(blank, failure, clock)
