"""The line under the node in the browser: where the run stands, later how it went."""

from __future__ import annotations

from collections.abc import Callable

from ...draftattn_core.run.events import Events, RunDone, RunStarted, StepDone, Waiting
from ...draftattn_core.run.report import EXPECTED_REASONS, DenseReason
from ..words import CLAUSES, LIST, Joined, Words, term
from .run_words import counted

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
    ended = [0.0]

    def step_done(event: StepDone) -> None:
        ended.append(event.seconds)
        _tell_step(event, tell, _pace(ended, skipping=_skipped(event)))

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


def _skipped(event: StepDone) -> bool:
    return any(count for outcome, count in event.evaluations.items() if outcome != "computed")


def _pace(ended: list[float], *, skipping: bool) -> float:
    """Seconds a step, from the times at which steps ended, the run's beginning first.

    Computed and skipped steps take turns: the last few say nothing about the next ones.
    """
    since = ended[min(1, len(ended) - 2) :] if skipping else ended[-RECENT - 1 :]
    return (since[-1] - since[0]) / (len(since) - 1)


def _tell_step(event: StepDone, tell: Callable[[str], None], pace: float) -> None:
    """The step that begins now, what became of the run so far, and the time left at `pace` seconds a step."""
    if event.steps is not None and event.step + 1 >= event.steps:
        return
    step, story = _step(event.step + 1, event.steps), _story(event)
    text = Words("live_at_step", step=step, text=Joined(story, CLAUSES)) if story else step
    left = 0.0 if event.steps is None else pace * (event.steps - event.step - 1)
    tell(Words("live_left", text=text, left=clock(left)) if left >= LEAST_LEFT else text)


def _story(event: StepDone) -> list[Words]:
    """What was skipped and what was sparse, where there was any such thing to tell."""
    clauses = []
    if _skipped(event):
        found = {outcome: count for outcome, count in sorted(event.evaluations.items()) if count}
        clauses.append(Words("run_evaluations", count=sum(found.values()), counts=counted(found, "outcome")))
    if event.calls:
        # Before anything could be sparse, "0 of 40 sparse" would look like a failure.
        planned = event.dense_next and not event.sparse
        sparse = Words("run_sparse", sparse=event.sparse, calls=event.calls)
        clauses.append(Words("live_dense_start") if planned else sparse)
    unexpected = [reason for reason in event.dense if DenseReason(reason) not in EXPECTED_REASONS]
    if unexpected:
        clauses.append(Words("run_dense", reasons=Joined((term("reason", reason) for reason in unexpected), LIST)))
    return clauses


def clock(seconds: float) -> str:
    """Time as 3:10, or 1:02:45 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
