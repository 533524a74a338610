"""What a run says while it goes: notes for the user, each kept once, and events for whoever listens."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ..phrase import Text
from .events import Event, Events, Note, StepDone, Waiting
from .report import RunReport
from .steps import Steps

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Telling:
    """The voice of one run; see `Run` for the attributes."""

    report: RunReport
    events: Events
    steps: Steps

    def note(self, message: Text) -> bool:
        """Keep a message for the user; False if it was there already."""
        if not self.report.note(message):
            return False
        self.emit(Note(message))
        return True

    def tell(self, message: Text) -> None:
        """Keep a message for the user, and log it the first time."""
        if self.note(message):
            log.warning(message)

    def wait(self, message: Text) -> None:
        """Say that the run waits for something."""
        log.info(message)
        self.emit(Waiting(message))

    def step_done(self, done: tuple[int, float] | None, dense_next: bool = False) -> None:
        """Say that a step is over.

        Args:
            done: its index and progress; None if none is over.
            dense_next: whether the next one is meant to be dense.
        """
        if done is not None and self.events.wanted(StepDone):
            step, progress = done
            counts = self.counts()
            self.emit(StepDone(step, self.steps.total, progress, self.report.seconds, *counts, dense_next))

    def counts(self) -> tuple[int, int, dict[str, int], dict[str, int]]:
        """Sparse calls, video self-attention calls, dense calls by reason, evaluations by outcome: so far."""
        calls = sum(call.position is not None for call in self.report.calls)
        return self.report.calls_sparse, calls, self.report.calls_dense(), dict(self.report.outcomes)

    def emit(self, event: Event) -> None:
        """Tell the listeners; of one that raised, a note is kept."""
        for failure in self.events.emit(event):
            self.note(failure)
