"""The CPU bench goes on where it was stopped, and takes over no row of other conditions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.cpu import Case, Row, case_of, kept_rows

CASE = Case("float32", 64, 8192, 0.5, "linear1")
ROW = Row(**asdict(CASE), **dict.fromkeys(list(Row.__dataclass_fields__)[5:], 1.0))


def line(conditions: str, memory: bool = True) -> str:
    return json.dumps({"conditions": conditions, "memory": memory, "row": asdict(ROW)})


def test_rows_of_the_same_conditions_are_taken_over_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "full.partial.jsonl"
    assert kept_rows(file, "two threads", True) == []
    whole = line("two threads")
    file.write_text("\n".join([line("one thread"), line("two threads", memory=False), whole, whole[:40]]))
    assert kept_rows(file, "two threads", True) == [ROW]
    assert case_of(ROW) == CASE
