"""The line under the node while a run goes."""

from __future__ import annotations

import pytest


def told(part, seconds: list[float], steps: int | None = 20, planned: int = 1, late: int = 100) -> list[str]:
    """What the node says of a run whose steps end at those times, planned to be dense in its first steps and late ones.

    Every call that is not planned to be dense is sparse; each step has 40.
    """
    events, status = part("draftattn_core.run.events"), part("nodes.host.status")
    channel, lines = events.Events(), []
    end = status.show_status(channel, lines.append)
    channel.emit(events.RunStarted(steps, 0.0, True))
    for step, at in enumerate(seconds):
        sparse = 40 * max(0, min(step + 1, late) - planned)
        dense_next = step + 1 < planned or step + 1 >= late
        channel.emit(events.StepDone(step, steps, 0.0, at, sparse, 40 * (step + 1), {}, {}, dense_next))
    end()
    channel.emit(events.RunStarted(steps, 0.0, True))
    return lines


def test_it_speaks_from_the_first_step_and_says_what_is_left(part) -> None:
    lines = told(part, [20.0, 30.0])
    assert lines[0] == "step 1 of 20: dense start as planned"
    assert lines[1] == "step 2 of 20: 0 of 40 self-attention calls sparse, 6:20 left"
    assert lines[2] == "step 3 of 20: 40 of 80 self-attention calls sparse, 4:30 left"
    assert len(lines) == 3, "it has ended"


def test_every_step_of_a_planned_dense_start_is_called_planned(part) -> None:
    lines = told(part, [10.0, 20.0, 30.0, 40.0], planned=3, late=4)
    assert lines[1:3] == [
        "step 2 of 20: dense start as planned, 3:10 left",
        "step 3 of 20: dense start as planned, 3:00 left",
    ]
    assert lines[3] == "step 4 of 20: 0 of 120 self-attention calls sparse, 2:50 left"
    assert lines[4] == "step 5 of 20: 40 of 160 self-attention calls sparse, 2:40 left", "a dense end is no start"


def skipped(part, seconds: list[float], outcomes: list[str], calls: int = 0) -> list[str]:
    """What the node says of a run of 20 steps whose evaluations had those outcomes."""
    events, status = part("draftattn_core.run.events"), part("nodes.host.status")
    channel, lines = events.Events(), []
    status.show_status(channel, lines.append)
    channel.emit(events.RunStarted(20, 0.0, False))
    for step, at in enumerate(seconds):
        counts = {name: outcomes[: step + 1].count(name) for name in ("computed", "forecast", "reused")}
        computed = calls * counts["computed"]
        channel.emit(events.StepDone(step, 20, 0.0, at, computed, computed, {}, counts))
    return lines


def test_skipped_steps_are_told_and_without_sparse_attention_nothing_is_said_of_it(part) -> None:
    lines = skipped(part, [1.0, 1.1, 1.2], ["computed", "forecast", "computed"])
    assert lines == [
        "step 1 of 20",
        "step 2 of 20, 0:19 left",
        "step 3 of 20: 2 evaluations: 1 computed, 1 forecast",
        "step 4 of 20: 3 evaluations: 2 computed, 1 forecast",
    ]


def test_skipped_steps_are_told_beside_sparse_attention(part) -> None:
    lines = skipped(part, [0.1, 0.2], ["computed", "reused"], calls=40)
    assert lines[2] == "step 3 of 20: 2 evaluations: 1 computed, 1 reused; 40 of 40 self-attention calls sparse"


def test_the_rest_of_a_run_that_skips_goes_by_all_of_its_steps_but_the_slow_first(part) -> None:
    # Computed steps take 30 s, skipped ones none: by the last three, all skipped, nothing would be left.
    seconds = [60.0, 60.0, 60.0, 60.0, 90.0, 90.0, 90.0, 90.0]
    outcomes = ["computed", "forecast", "forecast", "forecast"] * 2
    assert skipped(part, seconds, outcomes)[-1].endswith(", 0:51 left"), "30 s in 7 steps, and 12 to go"


def test_slow_first_steps_are_forgotten(part) -> None:
    assert told(part, [100.0, 110.0, 120.0, 130.0])[-1].endswith(", 2:40 left")


@pytest.mark.parametrize(("seconds", "steps"), [([0.4], 20), ([5.0], None), ([9.9], 2)])
def test_a_short_or_unknown_rest_is_not_told(part, seconds: list[float], steps: int | None) -> None:
    assert "left" not in told(part, seconds, steps)[-1]


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "1:00"), (190, "3:10"), (3765, "1:02:45")])
def test_times_read_as_a_clock(part, seconds: float, text: str) -> None:
    assert part("nodes.host.status").clock(seconds) == text
