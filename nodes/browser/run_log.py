"""The runs since the server started, for the browser's list of them: bounded in number and size."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ...draftattn_core.run.events import EvaluationDone, RunDone, RunStarted
from ...draftattn_core.run.report import EXPECTED_REASONS, DenseReason, RunReport
from ..host.runs import ReportHandle
from ..inputs.presets import Choices
from ..words import Words, plain
from .live_map import MAX_LAYERS, cell
from .verdicts import bounded

EVENT = "draftattention.run"
MAX_RUNS, MAX_STEPS, MAX_VALUE = 64, 100, 80


@dataclass(frozen=True)
class LoggedRun:
    """A run of one node's model.

    Attributes:
        number: counts the server's runs.
        node, workflow: the host's ids; the latter empty where it is not known.
        title: what the user called the node when it ran; empty where it is not known.
        at: when it ended, in seconds since 1970; seconds: how long it took.
        steps: of its sampler, None if unknown.
        cancelled: how far it came, if it ended early.
        text: how it went, in words; words, cancelled_words: the same as `words.plain` has it, None if it was cut.
        settings: what the user chose, by input; values in words.
        density: of the sparse calls, see `RunReport.sparse_density`; None where there were none.
        work: share of the dense run's work, see `RunReport.work`; speed_up: see there; None where not known.
        error: mean relative error of attention with the tails in use, as the probe measured it; None where it did not.
        skip_error: see `RunReport.skip_error`.
        dense: the reason for most of the dense calls that nobody asked for; empty if there were none.
        rows: of every step, "skipped" and what each layer did, see `live_map.cell`; sent on demand.
    """

    number: int
    node: str
    workflow: str
    title: str
    at: float
    seconds: float
    steps: int | None
    cancelled: str | None
    text: str
    settings: Mapping[str, str]
    density: float | None
    work: float | None
    speed_up: float | None
    error: float | None
    skip_error: float | None
    dense: str
    rows: tuple[dict[str, Any], ...] = ()
    words: Any = None
    cancelled_words: Any = None

    def told(self) -> dict[str, Any]:
        """Plain values for JSON, without the rows."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "rows"}
        return {name: _finite(value) for name, value in values.items()} | {
            "settings": {name: plain(value) for name, value in self.settings.items()}
        }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(eq=False)
class RunLog:
    """The last `MAX_RUNS` runs. Thread-safe."""

    _runs: deque[LoggedRun] = field(default_factory=lambda: deque(maxlen=MAX_RUNS))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def number(self) -> int:
        """For the next run."""
        return next(self._numbers)

    def keep(self, run: LoggedRun) -> None:
        with self._lock:
            self._runs.append(run)

    def runs(self) -> list[dict[str, Any]]:
        """All of them as plain values, the newest first, without what each layer did."""
        with self._lock:
            return [run.told() for run in reversed(self._runs)]

    def rows(self, number: int) -> tuple[dict[str, Any], ...] | None:
        """What each layer of a run did at each step; None if the run is not known."""
        with self._lock:
            return next((run.rows for run in self._runs if run.number == number), None)


# One server has one list, whatever models its runs use.
RUNS = RunLog()


def announce_runs(
    handle: ReportHandle,
    node: str,
    choices: Choices,
    *,
    job: Callable[[], tuple[str, str]],
    send: Callable[[str, dict[str, Any]], None],
    title: Callable[[], str] = str,
    runs: RunLog = RUNS,
) -> None:
    """Keep every run that speaks through the handle's events, and send what it came to.

    Args:
        node: the host's id of the node; choices: what the user chose there.
        job: ids of the workflow and of the job that run now; empty where they are not known.
        send: sends an event to all browsers.
        title: what the user calls the node of the job that runs now; empty where it is not known.
    """
    settings = settings_in_words(choices)
    rows: dict[int, dict[str, Any]] = {}

    def evaluated(event: EvaluationDone) -> None:
        skipped = event.outcome != "computed"
        # Some samplers evaluate a step several times: it was skipped only if none of them was computed.
        if event.step < MAX_STEPS and not (skipped and event.step in rows):
            cells = [] if skipped else [cell(value) for value in event.layers[:MAX_LAYERS]]
            rows[event.step] = {"step": event.step, "skipped": skipped, "cells": cells}

    def ended(event: RunDone) -> None:
        report = handle.report
        text, words = bounded(event.text)
        run = LoggedRun(
            number=runs.number(),
            node=node,
            workflow=job()[0],
            title=title(),
            at=time.time(),
            seconds=round(event.seconds, 3),
            steps=event.steps,
            cancelled=event.cancelled,
            text=text,
            settings=settings,
            density=report.sparse_density(),
            work=report.work(),
            speed_up=report.speed_up(),
            error=tail_error(report),
            skip_error=report.skip_error(),
            dense=unexpected(event.dense),
            rows=tuple(rows[step] for step in sorted(rows)),
            words=words,
            cancelled_words=plain(event.cancelled) if event.cancelled else None,
        )
        runs.keep(run)
        send(EVENT, run.told())

    handle.events.subscribe(RunStarted, lambda event: rows.clear())
    handle.events.subscribe(EvaluationDone, evaluated)
    handle.events.subscribe(RunDone, ended)


def unexpected(dense: Mapping[str, int]) -> str:
    """The most frequent reason that nobody asked for; empty if there is none."""
    counts = {reason: count for reason, count in dense.items() if DenseReason(reason) not in EXPECTED_REASONS}
    return max(counts, key=lambda reason: counts[reason], default="")


def tail_error(report: RunReport) -> float | None:
    """Mean over layers and their heads of the error that the probe measured for the tail in use.

    The probe's errors are means over a layer's heads; None where no layer has both an error and a choice.
    """
    errors = [
        report.tail_errors[layer][name]
        for layer, names in report.tails.items()
        for name in names
        if name in report.tail_errors.get(layer, {})
    ]
    return sum(errors) / len(errors) if errors else None


def settings_in_words(choices: Choices) -> dict[str, str]:
    """The preset, and everything that differs from the node's defaults."""
    default = Choices()
    told: dict[str, str] = {"preset": choices.preset}
    for one in fields(choices):
        value = getattr(choices, one.name)
        if one.name in ("schedule", "profile"):
            told |= {one.name: Words("run_connected")} if value is not None else {}
        elif value != getattr(default, one.name):
            words = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            told[one.name] = words[:MAX_VALUE]
    return told
