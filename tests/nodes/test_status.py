"""The line under the node while a run goes."""

from __future__ import annotations

import pytest


def told(part, seconds: list[float], steps: int | None = 20) -> list[str]:
    """What the node says of a run whose steps end at those times."""
    events, status = part("draftattn_core.run.events"), part("nodes.host.status")
    channel, lines = events.Events(), []
    end = status.show_status(channel, lines.append)
    channel.emit(events.RunStarted(steps, 0.0, True))
    for step, at in enumerate(seconds):
        channel.emit(events.StepDone(step, steps, 0.0, at, 40 * step, 40 * (step + 1), {}, {}))
    end()
    channel.emit(events.RunStarted(steps, 0.0, True))
    return lines


def test_it_speaks_from_the_first_step_and_says_what_is_left(part) -> None:
    lines = told(part, [20.0, 30.0])
    assert lines[0] == "step 1 of 20, dense start as planned"
    assert lines[1] == "step 2 of 20: 0 of 40 self-attention calls sparse, 6:20 left"
    assert lines[2] == "step 3 of 20: 40 of 80 self-attention calls sparse, 4:30 left"
    assert len(lines) == 3, "it has ended"


def test_slow_first_steps_are_forgotten(part) -> None:
    assert told(part, [100.0, 110.0, 120.0, 130.0])[-1].endswith(", 2:40 left")


@pytest.mark.parametrize(("seconds", "steps"), [([0.4], 20), ([5.0], None), ([9.9], 2)])
def test_a_short_or_unknown_rest_is_not_told(part, seconds: list[float], steps: int | None) -> None:
    assert "left" not in told(part, seconds, steps)[-1]


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "1:00"), (190, "3:10"), (3765, "1:02:45")])
def test_times_read_as_a_clock(part, seconds: float, text: str) -> None:
    assert part("nodes.host.status").clock(seconds) == text
