"""Time and memory of work on a CUDA device; on any other device the work runs and nothing is measured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Enough to overwrite any L2 there is, and to keep the device busy for a while.
_FILL_BYTES = 1 << 30
_MOST_FILLS = 40


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    median: float
    spread: float
    runs: int


class Clock:
    """Measures runs on one device.

    Before every timed run a gigabyte is written: inputs that earlier runs left in the L2 cache are gone, which is what
    rotating through copies of the inputs would do, for inputs of any size. As many such writes are queued as it takes
    the host to launch the run, so that what is timed is the device's work and not the host's.

    Args:
        seconds: per measurement, beside two runs to warm up.
        least, most: runs of a measurement.
    """

    def __init__(self, device: torch.device, seconds: float = 0.4, least: int = 3, most: int = 20) -> None:
        self.device = device
        self.measures = device.type == "cuda"
        self._seconds, self._least, self._most = seconds, least, most
        self._fill: Tensor | None = None
        self._fill_seconds = 0.0

    def wait(self) -> None:
        if self.measures:
            torch.cuda.synchronize(self.device)

    def time(self, run: Callable[[], Any]) -> Timing | None:
        """Median of CUDA event times; None off a CUDA device, where the work runs once."""
        run()
        if not self.measures:
            return None
        fill = self._ready()
        self.wait()
        start = time.perf_counter()
        run()
        launched = time.perf_counter() - start
        self.wait()
        once = time.perf_counter() - start
        fills = min(_MOST_FILLS, 1 + math.ceil(1.5 * launched / self._fill_seconds))
        wanted = self._seconds / (once + fills * self._fill_seconds)
        times = []
        for _ in range(min(self._most, max(self._least, int(wanted)))):
            for _ in range(fills):
                fill.zero_()
            times.append(_between_events(run))
        median = statistics.median(times)
        return Timing(median, (max(times) - min(times)) / median, len(times))

    def _ready(self) -> Tensor:
        if self._fill is None:
            self._fill = torch.empty(_FILL_BYTES, dtype=torch.uint8, device=self.device)
            self._fill.zero_()
            self._fill_seconds = min(_between_events(self._fill.zero_) for _ in range(3))
        return self._fill

    def extra_bytes(self, run: Callable[[], Any]) -> float | None:
        """Peak memory of one run beside what is allocated before it, by torch's allocator; None off a CUDA device."""
        if not self.measures:
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        self.wait()
        return float(torch.cuda.max_memory_allocated(self.device) - before)


def _between_events(run: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def poison(like: Tensor) -> None:
    """Leave NaN where the allocator will most likely put the next tensor of this size: rows nobody writes then show."""
    if like.device.type == "cuda":
        torch.full_like(like, torch.nan)
