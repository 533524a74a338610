"""Errors of our own in a run: they are counted, and after a few of them the run stands aside."""

from __future__ import annotations

import logging
import threading
import traceback
from dataclasses import dataclass, field

from ..phrase import Phrase, Text
from .telling import Telling

log = logging.getLogger(__name__)

MAX_ERRORS = 3


@dataclass(eq=False)
class Failures:
    """The errors of one run. Thread-safe.

    Attributes:
        telling: how the user hears of them.
        count: how many there were, on the rank that had most.
    """

    telling: Telling
    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def stood_aside(self) -> bool:
        """Whether the run gave up being sparse after `MAX_ERRORS` of them."""
        return self.count >= MAX_ERRORS

    def agree(self, count: int) -> None:
        """Take over what all ranks agreed on."""
        with self._lock:
            self.count = count

    def raised(self, error: Exception) -> None:
        """Count an error from an except block: the first is logged with its traceback."""
        if not self.count:
            log.error("DraftAttention met an error and left its part to the model itself\n%s", traceback.format_exc())
        self.count_error(Phrase("note_error", "error: {error}", error=f"{type(error).__name__}: {error}"))

    def count_error(self, message: Text) -> None:
        """Count one that `message` tells of."""
        with self._lock:
            self.count += 1
            last = self.count == MAX_ERRORS
        self.telling.tell(message)
        if last:
            self.telling.tell(
                Phrase(
                    "note_stands_aside",
                    "DraftAttention stands aside for the rest of this run after {count} errors",
                    count=MAX_ERRORS,
                )
            )
