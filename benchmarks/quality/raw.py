"""What was measured, unit by unit: a file that is only ever appended to, so that a run can be stopped and resumed.

Every line is one JSON object: one finished unit with everything its figures depend on. Lines of other weights or
settings stay in the file and are not looked at. A line cut short by a kill is skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.plan import CapturedPlan, EndToEndPlan
from benchmarks.quality.rows import Row
from draftattention.draftattn_core import TokenGrid

# Raised when the bench measures something else under the same name: older lines are measured anew then.
VERSION = 1

Record = dict[str, Any]


def model_sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def definition(row: Row, grid: TokenGrid) -> str:
    """What `row` does on `grid`, whatever its name: equal for equal methods."""
    return hashlib.sha256(f"{row.what_it_does()!r} {row.layout(grid)}".encode()).hexdigest()[:12]


def significant(value: float) -> float:
    """Seven digits: what float32 holds."""
    return float(f"{value:.7g}")


@dataclass(frozen=True)
class Raw:
    """One raw file, seen by a run of one identity (weights, device and settings shared by all its units)."""

    path: Path
    identity: Record

    def append(self, record: Record) -> None:
        """Add a unit; on the disk when this returns. Lines of several processes do not mix: each is one write."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = {**self.identity, **record, "threads": torch.get_num_threads()}
        line = json.dumps(whole, separators=(",", ":")) + "\n"
        with self.path.open("ab", buffering=0) as file:
            # After a kill the last line may lack its end.
            file.write((b"" if _ends_whole(self.path) else b"\n") + line.encode())
            os.fsync(file.fileno())

    def records(self) -> list[Record]:
        """Units of this identity, oldest first."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", errors="replace") as file:
            return [record for record in _whole(file) if all(record.get(k) == v for k, v in self.identity.items())]


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _whole(lines: Iterable[str]) -> Iterator[Record]:
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            yield record


@dataclass(frozen=True)
class Store:
    """The raw files of one plan in one output folder, for one set of weights on one kind of device."""

    folder: Path
    plan: str
    model: str
    device: str

    def captured(self, part: CapturedPlan) -> Raw:
        return self._raw(f"captured_{self.plan}.jsonl", steps_run=part.steps, sampled=part.sampled)

    def end_to_end(self, part: EndToEndPlan) -> Raw:
        return self._raw(f"end_to_end_{self.plan}_{part.name}.jsonl", cfg=part.cfg)

    def _raw(self, name: str, **settings: float) -> Raw:
        identity = {"version": VERSION, "model": self.model, "device": self.device, **settings}
        return Raw(self.folder / name, identity)


@dataclass(frozen=True)
class Shard:
    """Every `of`-th round from `index` on: what one of several processes does."""

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise ValueError(f"there is no shard {self.index + 1} of {self.of}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `1/2` or `2/2`. Raises ValueError."""
        index, of = map(int, text.split("/"))
        return cls(index - 1, of)

    def pick(self, rounds: list[tuple[TokenGrid, int]]) -> list[tuple[TokenGrid, int]]:
        return rounds[self.index :: self.of]


WHOLE = Shard()


def effort(records: list[Record]) -> str:
    """How long the units took, per number of threads, in words."""
    seconds: dict[int, float] = {}
    for record in records:
        seconds[record["threads"]] = seconds.get(record["threads"], 0.0) + record["took"]
    parts = (f"{value / 60:.1f} minutes with {n} thread{'' if n == 1 else 's'}" for n, value in sorted(seconds.items()))
    return " + ".join(parts) or "nothing"


def name_rounds(rounds: Iterable[tuple[TokenGrid | str, int]]) -> str:
    return ", ".join(f"({grid}, {seed})" for grid, seed in rounds)
