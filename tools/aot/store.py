"""Results of ahead-of-time compilation on disk: a line of JSON each, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import IO

import triton

from tools.aot.compile import Compiled, Planned, fingerprint

ROOT = Path(__file__).resolve().parents[2]
# What runs leave behind on this machine, and what of it is committed.
WORK = ROOT / "outputs" / "aot"
RESULTS = ROOT / "benchmarks" / "results" / "aot"


class Store:
    """Results of one Triton version by the fingerprint of what was compiled; `add` writes through at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Compiled] = {}
        self._file: IO[str] | None = None
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    key = row.pop("fingerprint")
                    self._found[key] = Compiled(**{**row, "wants": tuple(row["wants"])})
                except (ValueError, KeyError, TypeError):
                    continue  # the line a stopped run was writing, or one of an older form: compiled again

    def get(self, planned: Planned) -> Compiled | None:
        """The result of a case as it is now, if there is one."""
        return self._found.get(fingerprint(planned))

    @property
    def results(self) -> list[Compiled]:
        return list(self._found.values())

    @property
    def fingerprints(self) -> list[str]:
        return list(self._found)

    def add(self, planned: Planned, result: Compiled) -> None:
        key = fingerprint(planned)
        self._found[key] = result
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(_line(key, result) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def work_store() -> Store:
    """This machine's results with the running Triton."""
    return Store(WORK / f"triton-{triton.__version__}.jsonl")


def results_file(version: str) -> Path:
    return RESULTS / f"triton-{version}.jsonl"


def committed_versions() -> list[str]:
    """Triton versions with committed results, oldest first."""
    names = [path.stem.removeprefix("triton-") for path in RESULTS.glob("triton-*.jsonl")]
    return sorted(names, key=lambda name: [int(number) for number in name.split(".")])


def write_results(version: str, results: Iterable[tuple[Planned, Compiled]]) -> Path:
    """Replace the committed results of a Triton version."""
    path = results_file(version)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [_line(fingerprint(planned), result) for planned, result in results]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _line(key: str, result: Compiled) -> str:
    instructions = {name: count for name, count in result.instructions.items() if count}
    return json.dumps({"fingerprint": key, **asdict(result), "instructions": instructions})
