"""Children with a time limit: a deadlock, a crash or a flood of output becomes a verdict, never a hang."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.kernels.interpreter import interpreter_lacks
from benchmarks.kernels.row import DONE, READY, Row, row_of

ROOT = Path(__file__).resolve().parents[2]
# How long a killed process may take to go before it is left behind, and the least time worth starting a job in.
GRACE, WORTH_STARTING = 5.0, 20.0
OUT_OF_TIME = "stopped at the end of the bench's time"
# Of a child's output.
_KEPT_LINES, _KEPT_LENGTH = 100, 500


@dataclass(frozen=True)
class Outcome:
    """What became of one child.

    Attributes:
        rows: those it printed, also when it did not end well.
        verdict: "done", or what happened.
        seconds: from its being told to go.
        said: the last lines of what else it printed.
    """

    rows: tuple[Row, ...]
    verdict: str
    seconds: float
    said: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.verdict == "done"

    def to_dict(self, name: str) -> dict[str, Any]:
        """As plain values for JSON, with the last lines it printed if it did not end well."""
        plain = {"name": name, "verdict": self.verdict, "seconds": round(self.seconds, 1)}
        return plain if self.ok else plain | {"said": list(self.said)}


class Child:
    """A process that loads at once and works when told to.

    Args:
        work: what `child.py` is told.
        device: "cuda" or "cpu".
        under: a tool that runs it, as the words in front of its command.
    """

    def __init__(self, work: dict[str, Any], device: str, under: tuple[str, ...] = ()) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        # Off a GPU our kernels run in Triton's interpreter, where that works.
        if device == "cpu" and interpreter_lacks() is None:
            environment["TRITON_INTERPRET"] = "1"
        self._process = subprocess.Popen(
            [*under, sys.executable, "-m", "benchmarks.kernels.child", json.dumps(work), device],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._rows: list[Row] = []
        self._said: list[str] = []
        self._done = False
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            row = row_of(line)
            if row is not None:
                self._rows.append(row)
            elif line.startswith(READY):
                self._ready.set()
            elif line.startswith(DONE):
                self._done = True
            elif line.strip():
                self._said = [*self._said[1 - _KEPT_LINES :], line.rstrip()[:_KEPT_LENGTH]]
        self._ready.set()

    def work(self, limit: float) -> Outcome:
        """Tell it to go and wait, `limit` seconds at most, starting up included."""
        start = time.monotonic()
        self._ready.wait(limit)
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            # Left open: a child goes when this end closes, so none outlives a bench that is killed.
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        try:
            code = self._process.wait(max(0.1, limit - (time.monotonic() - start)))
        except subprocess.TimeoutExpired:
            self.stop()
            return self._outcome(f"no answer within {limit:.0f} s, stopped", start)
        self._close()
        return self._outcome("done" if code == 0 and self._done else self._last_words(code), start)

    def _outcome(self, verdict: str, start: float) -> Outcome:
        return Outcome(tuple(self._rows), verdict, time.monotonic() - start, tuple(self._said))

    def stop(self) -> None:
        """Kill it and what it started; one that the driver holds on to is left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        self._close()

    def _close(self) -> None:
        self._reader.join(GRACE)
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _last_words(self, code: int) -> str:
        ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{ended}: {self._said[-1].strip()[:200]}" if self._said else ended


@dataclass
class Deadline:
    """When the bench stops, whatever it is doing."""

    at: float

    @classmethod
    def after(cls, minutes: float) -> Deadline:
        return cls(time.monotonic() + 60.0 * minutes)

    def left(self) -> float:
        return self.at - time.monotonic() - GRACE

    def limit(self, wanted: float) -> float:
        return max(0.1, min(wanted, self.left()))


@dataclass(frozen=True)
class Task:
    """A job: its name, what the child is told, its limit in seconds, and the words of a tool that runs the child."""

    name: str
    work: dict[str, Any]
    limit: float
    under: tuple[str, ...] = ()


def _child(task: Task, device: str) -> Child:
    return Child(task.work, device, task.under) if task.under else Child(task.work, device)


def _judged(outcome: Outcome, deadline: Deadline) -> Outcome:
    """The outcome; a child that was stopped because the bench's time was over did not hang."""
    if deadline.left() <= GRACE and outcome.verdict.startswith("no answer"):
        return replace(outcome, verdict=OUT_OF_TIME)
    return outcome


def run_at_once(
    tasks: list[Task], device: str, deadline: Deadline, workers: int, told: Callable[[Task, Outcome], None]
) -> list[Outcome]:
    """All of them, `workers` at a time: for work that is not timed. Outcomes in the order of the tasks."""

    def one(task: Task) -> Outcome:
        if deadline.left() <= 0:
            return Outcome((), "not run: no time was left", 0.0)
        outcome = _judged(_child(task, device).work(deadline.limit(task.limit)), deadline)
        told(task, outcome)
        return outcome

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, tasks))


def run_until_one_hangs(
    tasks: list[Task], device: str, deadline: Deadline, told: Callable[[Task, Outcome], None]
) -> list[Outcome]:
    """One after the other, each alone. Where one does not answer the others are not tried: they would not either."""
    outcomes: list[Outcome] = []
    hung: Task | None = None
    for task in tasks:
        if hung is not None:
            outcomes.append(Outcome((), f"not run: {hung.name} did not answer", 0.0))
            continue
        (outcome,) = run_at_once([task], device, deadline, 1, told)
        outcomes.append(outcome)
        hung = task if outcome.verdict.startswith("no answer") else None
    return outcomes


def run_in_turn(
    tasks: list[Task], device: str, deadline: Deadline, told: Callable[[Task, Outcome], None]
) -> list[Outcome]:
    """One after the other, the next one starting up while one works. What no time is left for is not started."""
    outcomes: list[Outcome] = []
    waiting: Child | None = None
    for index, task in enumerate(tasks):
        left = deadline.left()
        if left < WORTH_STARTING:
            outcome = Outcome((), f"not run: {max(0.0, left):.0f} s were left", 0.0)
        else:
            child = waiting or _child(task, device)
            waiting = _child(tasks[index + 1], device) if index + 1 < len(tasks) else None
            outcome = _judged(child.work(deadline.limit(task.limit)), deadline)
        outcomes.append(outcome)
        told(task, outcome)
    if waiting is not None:
        waiting.stop()
    return outcomes
