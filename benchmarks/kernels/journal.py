"""The journal of a bench: what came of every job, a line each, so that a bench that was cut off goes on from there.

A journal holds for one machine and one state of the sources: where either is another, a bench begins a new one beside
it, and leaves the old one and its results as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.kernels.process import ROOT, Outcome, Task
from benchmarks.kernels.row import Row

# What results depend on; tests and documents are not among it.
_SOURCES = ("benchmarks/kernels", "benchmarks/e2e", "benchmarks/gpu", "draftattn_core", "kernels")
# What of a machine makes its figures another machine's; clocks and degrees change from call to call.
_SAME = ("device", "driver", "torch", "cuda", "triton", "diffusers", "comfy-kitchen", "power limit")

Told = Callable[[Task, Outcome], None]


def sources_digest(root: Path = ROOT, *, tables: bool = True) -> str:
    """A fingerprint of everything that results depend on; `tables`: tuning tables too."""
    found = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix == ".py" or (tables and path.suffix == ".json"):
                found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


class Journal:
    """Outcomes by job, on disk as soon as they are known.

    Args:
        path: of the results, without a suffix; the journal lies beside them. Where the one that lies there is another
            machine's or of other sources, `path` gets a number: nothing is written over.
        about: the machine, see `report.machine`.
        sources: see `sources_digest`.

    Attributes:
        path: where the results go, without a suffix.
    """

    def __init__(self, path: Path, about: dict[str, Any], sources: str) -> None:
        head = {"machine": {name: about.get(name) for name in _SAME}, "sources": sources}
        number, self.path = 1, path
        while (found := _head(self.file)) != head and (found is not None or _anything(self.path)):
            number += 1
            self.path = path.with_name(f"{path.name}-{number}")
        self._known: dict[str, Outcome] = {}
        if found is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(head)
        else:
            self._known = _outcomes(self.file)

    @property
    def file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.jsonl")

    def known(self, task: Task, device: str) -> Outcome | None:
        """What came of a job before, if it came to its end."""
        return self._known.get(_key(task, device))

    def keep(self, task: Task, device: str, outcome: Outcome) -> None:
        """Put down what came of a job. One that did not come to its end is told, and run again next time."""
        if outcome.ok:
            self._known[_key(task, device)] = outcome
        plain = {"key": _key(task, device), "name": task.name, "verdict": outcome.verdict, "seconds": outcome.seconds}
        self._append({**plain, "rows": [asdict(row) for row in outcome.rows], "said": list(outcome.said)})

    def _append(self, line: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def going_on(
    tasks: list[Task], device: str, journal: Journal, told: Told, run: Callable[[list[Task], Told], list[Outcome]]
) -> list[Outcome]:
    """Outcomes of all tasks, in their order: those the journal knows are told at once, `run` does the others."""
    found = [journal.known(task, device) for task in tasks]
    for task, outcome in zip(tasks, found):
        if outcome is not None:
            told(task, outcome)

    def keep(task: Task, outcome: Outcome) -> None:
        if not outcome.verdict.startswith("not run"):
            journal.keep(task, device, outcome)
        told(task, outcome)

    left = [task for task, outcome in zip(tasks, found) if outcome is None]
    new = iter(run(left, keep) if left else ())
    return [next(new) if outcome is None else outcome for outcome in found]


def _key(task: Task, device: str) -> str:
    said = json.dumps([task.work, device, list(task.under)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:24]


def _anything(path: Path) -> bool:
    return any(path.with_name(f"{path.name}.{ending}").exists() for ending in ("json", "md", "jsonl"))


def _lines(file: Path) -> Iterable[dict[str, Any]]:
    """The lines that can be read: a machine that is taken away may leave half a line."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _head(file: Path) -> dict[str, Any] | None:
    return next(iter(_lines(file)), None) if file.is_file() else None


def _outcomes(file: Path) -> dict[str, Outcome]:
    names = {field.name for field in fields(Row)}
    found: dict[str, Outcome] = {}
    for line in _lines(file):
        if line.get("verdict") != "done" or not isinstance(line.get("rows"), list):
            continue
        try:
            rows = tuple(Row(**{key: value for key, value in row.items() if key in names}) for row in line["rows"])
            found[str(line["key"])] = Outcome(rows, "done", float(line["seconds"]), ())
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    return found
