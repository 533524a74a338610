"""Events: what a run says while it goes, through one channel that listeners subscribe to.

A listener cannot hurt the run: one that raises is dropped, and the run keeps a note of it. All events but `CallDone`
hold plain values only, so that they can be sent to a browser as they are.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..attention import Attention
from ..phrase import Phrase, Text
from .report import Position

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CallDone:
    """A sparse call was served.

    Attributes:
        position: where in the run.
        result: its output, selection and tail; a listener that keeps tensors of it keeps their memory.
    """

    position: Position
    result: Attention


@dataclass(frozen=True)
class RunStarted:
    """A run begins.

    Attributes:
        steps: steps of its sampler, None if unknown.
        progress: where in the noise it begins: 0 at the noisiest end.
        dense_start: whether its first step is meant to be dense.
    """

    steps: int | None
    progress: float
    dense_start: bool


@dataclass(frozen=True)
class EvaluationDone:
    """An evaluation of the model was answered.

    Attributes:
        step: index of the sampler's step it belongs to; steps: how many there are, None if unknown.
        progress: where in the noise it stands: 0 at the noisiest end, 1 at the clean end.
        level: its noise level.
        outcome: "computed", "reused" or "forecast".
        seconds: since the run began.
        layers: what each layer did, see `layer_row`; empty if no video self-attention was seen.
    """

    step: int
    steps: int | None
    progress: float
    level: float
    outcome: str
    seconds: float
    layers: tuple[float | str | None, ...] = ()


@dataclass(frozen=True)
class StepDone:
    """A step of the sampler is over. Counts are those of the run so far.

    Attributes:
        step: index of the step; steps: how many there are, None if unknown.
        progress: of its last evaluation.
        seconds: since the run began.
        sparse: video self-attention calls that were sparse; calls: all of them.
        dense: dense calls by reason, cross-attention included.
        evaluations: evaluations by outcome: "computed", "reused", "forecast".
        dense_next: whether the step that begins now is meant to be dense; False after the last one.
    """

    step: int
    steps: int | None
    progress: float
    seconds: float
    sparse: int
    calls: int
    dense: Mapping[str, int]
    evaluations: Mapping[str, int]
    dense_next: bool = False


@dataclass(frozen=True)
class RunDone:
    """The run is over.

    Attributes:
        text: how it went, in words.
        cancelled: how far it came, in words, if it ended early; None if it was complete.
        steps: steps of its sampler, None if unknown.
        seconds, sparse, calls, dense, evaluations: see `StepDone`.
    """

    text: str
    cancelled: Text | None
    steps: int | None
    seconds: float
    sparse: int
    calls: int
    dense: Mapping[str, int]
    evaluations: Mapping[str, int]


@dataclass(frozen=True)
class Waiting:
    """The run waits before its first block, for kernels that are being compiled.

    Attributes:
        message: for what, in words.
    """

    message: Text


@dataclass(frozen=True)
class Note:
    """Something the user should know.

    Attributes:
        message: what, in words; the report keeps it too.
    """

    message: Text


Event = CallDone | RunStarted | EvaluationDone | StepDone | RunDone | Waiting | Note
E = TypeVar("E", bound=Event)
Listener = Callable[[Any], None]


@dataclass(eq=False)
class Events:
    """The channel. It outlives runs: a handle keeps one, and every run of its model speaks through it. Thread-safe."""

    _listeners: list[tuple[type[Any], Listener]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def subscribe(self, kind: type[E], listener: Callable[[E], None]) -> Callable[[], None]:
        """Have `listener` called with every event of `kind`, on the thread that the event happens on.

        Returns:
            A function that ends the subscription; calling it again does nothing.
        """
        entry = (kind, listener)
        with self._lock:
            self._listeners.append(entry)
        return lambda: self._drop(entry)

    def wanted(self, kind: type[Event]) -> bool:
        """Whether anyone listens to events of `kind`."""
        with self._lock:
            return any(wanted is kind for wanted, _ in self._listeners)

    def emit(self, event: Event) -> list[Text]:
        """Tell everyone who wants it.

        Returns:
            A sentence for each listener that failed and was dropped.
        """
        with self._lock:
            entries = [entry for entry in self._listeners if entry[0] is type(event)]
        failures: list[Text] = []
        for entry in entries:
            try:
                entry[1](event)
            except Exception as error:
                self._drop(entry)
                failures.append(
                    Phrase(
                        "note_listener",
                        "a listener of this run failed and was dropped: {error}",
                        error=f"{type(error).__name__}: {error}",
                    )
                )
                log.exception("DraftAttention: a listener failed and was dropped")
        return failures

    def _drop(self, entry: tuple[type[Any], Listener]) -> None:
        with self._lock:
            self._listeners[:] = [kept for kept in self._listeners if kept is not entry]
