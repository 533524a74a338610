"""What came of each step of the GPU bench, on disk at any time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.kernels.process import Outcome
from benchmarks.kernels.report import write_files

Stage = Literal["a", "b", "c"]
Word = Literal["right", "wrong", "done", "missing", "not run", "unmeasured"]


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        stage: it belongs to.
        name: for people.
        word: `right` or `wrong` of checks, `done` of measurements, `missing` where a tool or package is not there,
            `not run` where no time was left or something before it forbids it, `unmeasured` without a GPU.
        said: what it found, in a sentence.
        seconds: it took.
        lines: of its output, where those are the finding.
    """

    stage: Stage
    name: str
    word: Word
    said: str = ""
    seconds: float = 0.0
    lines: tuple[str, ...] = ()


@dataclass
class Findings:
    """Everything the bench knows so far.

    Attributes:
        machine: see `report.machine`.
        path: of the results, without a suffix.
        steps: in their order.
        outcomes: of all children, by name.
        files: result files of the other benches, by their kind.
    """

    machine: dict[str, Any]
    path: Path
    steps: list[Step] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def step(self, name: str) -> Step | None:
        return next((step for step in reversed(self.steps) if step.name == name), None)

    def add(self, step: Step) -> None:
        self.steps.append(step)
        print(f"[{step.stage}] {step.name}: {step.word}{', ' + step.said if step.said else ''}", flush=True)

    def write(self, story: list[str]) -> None:
        """Put everything down; called after every step."""
        plain = {
            "machine": self.machine,
            "story": story,
            "steps": [asdict(step) for step in self.steps],
            "children": {
                name: one.to_dict(name) | {"rows": [row.to_dict() for row in one.rows]}
                for name, one in self.outcomes.items()
            },
            "files": {kind: path.name for kind, path in self.files.items()},
        }
        page = ["# GPU bench", "", *(f"{index}. {line}" for index, line in enumerate(story, 1)), ""]
        page += ["| stage | step | | s | |", "|---|---|---|---|---|"]
        page += [f"| {s.stage} | {s.name} | {s.word} | {s.seconds:.0f} | {s.said} |" for s in self.steps]
        for step in self.steps:
            if step.lines:
                page += ["", f"## {step.name}", "", "```", *step.lines, "```"]
        write_files(self.path, plain, "\n".join([*page, ""]))
