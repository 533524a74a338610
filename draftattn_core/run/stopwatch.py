"""Times of work on a device, read after the run so that nothing waits during it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def timer_events(device: torch.device) -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    """How to make a timer event of the device and how to record one, None where it has none (the CPU needs none)."""
    module: Any = None if device.type == "cpu" else getattr(torch, device.type, None)
    if not hasattr(module, "Event"):
        return None

    def record(event: Any) -> None:
        # MPS has one stream only, and does not name it.
        event.record(*((module.current_stream(device),) if hasattr(module, "current_stream") else ()))

    return lambda: module.Event(enable_timing=True), record


def times_launches_only(device: torch.device) -> bool:
    """Whether `stopwatch` sees when work was launched on the device, not how long it took."""
    return device.type != "cpu" and timer_events(device) is None


def stopwatch(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Start timing work on `device`; calling the result stops and returns a reader of the seconds.

    On CUDA, XPU and MPS it records events, so nothing waits until the time is read after the run.
    """
    timer = timer_events(device)
    if timer is not None:
        make, record = timer
        begin, end = make(), make()
        record(begin)

        def stop_events() -> Callable[[], float]:
            record(end)

            def read() -> float:
                end.synchronize()
                return float(begin.elapsed_time(end)) / 1000.0

            return read

        return stop_events
    start = time.perf_counter()

    def stop_clock() -> Callable[[], float]:
        elapsed = time.perf_counter() - start
        return lambda: elapsed

    return stop_clock
