"""The line under the node in the browser: where the run stands, later how it went."""

from __future__ import annotations

from collections.abc import Callable

from ...draftattn_core.run.events import Events, RunDone, RunStarted, StepDone, Waiting
from ...draftattn_core.run.report import EXPECTED_REASONS, DenseReason


def show_status(events: Events, tell: Callable[[str], None] | None) -> Callable[[], None]:
    """Tell the node what `events` say of one run, from its first step on, so that no text of an earlier run is left.

    Args:
        tell: puts text under the node in place of what was there; None where there is no browser.

    Returns:
        A function that ends it.
    """
    if tell is None:
        return lambda: None
    ends = (
        events.subscribe(RunStarted, lambda event: tell(_beginning(event))),
        events.subscribe(Waiting, lambda event: tell(event.message)),
        events.subscribe(StepDone, lambda event: _tell_step(event, tell)),
        events.subscribe(RunDone, lambda event: tell(event.text)),
    )

    def end() -> None:
        for unsubscribe in ends:
            unsubscribe()

    return end


def _step(step: int, steps: int | None) -> str:
    return f"step {step + 1}" if steps is None else f"step {step + 1} of {steps}"


def _beginning(event: RunStarted) -> str:
    return _step(0, event.steps) + (", dense start as planned" if event.dense_start else "")


def _tell_step(event: StepDone, tell: Callable[[str], None]) -> None:
    """The step that begins now, and what became of the calls so far."""
    if event.steps is not None and event.step + 1 >= event.steps:
        return
    unexpected = [reason for reason in event.dense if DenseReason(reason) not in EXPECTED_REASONS]
    text = f"{_step(event.step + 1, event.steps)}: {event.sparse} of {event.calls} self-attention calls sparse"
    tell(text + (f"; dense: {', '.join(unexpected)}" if unexpected else ""))
