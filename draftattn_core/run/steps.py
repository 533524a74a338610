"""How far a run has come: noise levels seen, steps of the sampler done."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ..phrase import Phrase, Text


@dataclass(eq=False)
class Steps:
    """Progress of one run. Thread-safe.

    Attributes:
        total: steps of the sampler, None if unknown.
    """

    total: int | None = None
    _levels: dict[float, int] = field(default_factory=dict)
    _now: int = -1
    _progress: float = 0.0
    _broken: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def index_of(self, level: float) -> int:
        """Index of a noise level in this run, in order of first appearance."""
        with self._lock:
            return self._levels.setdefault(level, len(self._levels))

    def begin(self, step: int, progress: float) -> tuple[int, float] | None:
        """An evaluation of `step` begins.

        Returns:
            Index and progress of the step that is over by that, None if none is.
        """
        with self._lock:
            self._broken = False
            before = (self._now, self._progress) if 0 <= self._now < step else None
            if step >= self._now:
                self._now, self._progress = step, progress
            return before

    def broke(self) -> None:
        """The evaluation under way was left by an exception."""
        with self._lock:
            self._broken = True

    def finish(self) -> tuple[int, float] | None:
        """Index and progress of the last step, if there was any."""
        with self._lock:
            return (self._now, self._progress) if self._now >= 0 else None

    @property
    def done(self) -> int:
        """Steps that are over, the one whose evaluation was the last among them."""
        with self._lock:
            return max(0, self._now) if self._broken else self._now + 1

    @property
    def complete(self) -> bool:
        """Whether no step is left to do; also before the first, for there is no run to speak of then."""
        done = self.done
        return done == 0 or (self.total is not None and done >= self.total)

    def cancelled(self) -> Text:
        """How far a run came that ends now."""
        done, steps = self.done, self.total
        if steps is None:
            if done:
                return Phrase("cancelled_after", "cancelled after step {step}", step=done)
            return Phrase("cancelled_in", "cancelled in step {step}", step=1)
        if done:
            return Phrase("cancelled_after_of", "cancelled after step {step} of {steps}", step=done, steps=steps)
        return Phrase("cancelled_in_of", "cancelled in step {step} of {steps}", step=1, steps=steps)
