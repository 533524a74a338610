"""The line under the node in the browser: where the run stands, later how it went."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ...draftattn_core.run.events import Events, RunDone, RunStarted, StepDone, Waiting
from ...draftattn_core.run.report import EXPECTED_REASONS, DenseReason
from ..words import CLAUSES, LIST, Joined, Words, term

# Times of the last few steps say how long the rest takes: the first ones are slower, dense or compiling.
RECENT = 3
# A shorter rest is over before it is read.
LEAST_LEFT = 10.0


def show_status(events: Events, tell: Callable[[str], None] | None) -> Callable[[], None]:
    """Tell the node what `events` say of one run, from its first step on, so that no text of an earlier run is left.

    Args:
        tell: puts text under the node in place of what was there; None where there is no browser.

    Returns:
        A function that ends it.
    """
    if tell is None:
        return lambda: None
    ended: deque[float] = deque([0.0], RECENT + 1)

    def step_done(event: StepDone) -> None:
        ended.append(event.seconds)
        _tell_step(event, tell, (ended[-1] - ended[0]) / (len(ended) - 1))

    ends = (
        events.subscribe(RunStarted, lambda event: tell(_beginning(event))),
        events.subscribe(Waiting, lambda event: tell(event.message)),
        events.subscribe(StepDone, step_done),
        events.subscribe(RunDone, lambda event: tell(event.text)),
    )

    def end() -> None:
        for unsubscribe in ends:
            unsubscribe()

    return end


def _step(step: int, steps: int | None) -> Words:
    return Words("live_step", step=step + 1) if steps is None else Words("live_step_of", step=step + 1, steps=steps)


def _beginning(event: RunStarted) -> Words:
    step = _step(0, event.steps)
    return Words("live_at_step", step=step, text=Words("live_dense_start")) if event.dense_start else step


def _tell_step(event: StepDone, tell: Callable[[str], None], pace: float) -> None:
    """The step that begins now, what became of the calls so far, and the time left at `pace` seconds a step."""
    if event.steps is not None and event.step + 1 >= event.steps:
        return
    unexpected = [reason for reason in event.dense if DenseReason(reason) not in EXPECTED_REASONS]
    # Before anything could be sparse, "0 of 40 sparse" would look like a failure.
    planned = event.dense_next and not event.sparse
    story = Words("live_dense_start") if planned else Words("run_sparse", sparse=event.sparse, calls=event.calls)
    clauses = [Words("live_at_step", step=_step(event.step + 1, event.steps), text=story)]
    if unexpected:
        clauses.append(Words("run_dense", reasons=Joined((term("reason", reason) for reason in unexpected), LIST)))
    text = Joined(clauses, CLAUSES)
    left = 0.0 if event.steps is None else pace * (event.steps - event.step - 1)
    tell(Words("live_left", text=text, left=clock(left)) if left >= LEAST_LEFT else text)


def clock(seconds: float) -> str:
    """Time as 3:10, or 1:02:45 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
