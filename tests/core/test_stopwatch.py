"""The stopwatch: a device's own timer events where it has them, read only when somebody asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from draftattention.draftattn_core.run.stopwatch import stopwatch, times_launches_only


def test_the_clock_stops_when_told() -> None:
    stop = stopwatch(torch.device("cpu"))
    read = stop()
    assert read() == read() >= 0


class Timer:
    """A device's timer events: a clock that only a record moves, read only after waiting for the event."""

    def __init__(self) -> None:
        self.now, self.waited, self.streams = 0.0, 0, []

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        timer = self

        class Event:
            def record(self, *stream: object) -> None:
                timer.streams.append(stream)
                timer.now += 40.0
                self.at = timer.now

            def synchronize(self) -> None:
                timer.waited += 1

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        return Event()


@pytest.mark.parametrize(("device", "stream"), [("cuda", ("its stream",)), ("xpu", ("its stream",)), ("mps", ())])
def test_a_devices_own_events_time_it_and_nothing_waits_before_the_time_is_read(
    monkeypatch: pytest.MonkeyPatch, device: str, stream: tuple[str, ...]
) -> None:
    timer = Timer()
    monkeypatch.setattr(getattr(torch, device), "Event", timer.event)
    if stream:
        monkeypatch.setattr(getattr(torch, device), "current_stream", lambda device: "its stream")
    read = stopwatch(torch.device(device))()
    assert timer.waited == 0 and timer.streams == [stream] * 2
    assert read() == pytest.approx(0.04)
    assert timer.waited == 1
    assert not times_launches_only(torch.device(device))


def test_where_a_device_has_no_events_the_times_are_known_for_what_they_are() -> None:
    assert times_launches_only(torch.device("vulkan"))
    assert not times_launches_only(torch.device("cpu"))
