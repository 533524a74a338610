"""Results of ahead-of-time compilation on disk: a line of JSON each, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import IO

import triton

from tools.aot.compile import Compiled, Planned, fingerprint

ROOT = Path(__file__).resolve().parents[2]
# What runs leave behind on this machine; none of it is committed.
WORK = ROOT / "outputs" / "aot"


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

    def add(self, planned: Planned, result: Compiled) -> None:
        key = fingerprint(planned)
        self._found[key] = result
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        instructions = {name: count for name, count in result.instructions.items() if count}
        row = {"fingerprint": key, **asdict(result), "instructions": instructions}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def work_store() -> Store:
    """This machine's results with the running Triton."""
    return Store(WORK / f"triton-{triton.__version__}.jsonl")
