"""The story in ten lines: what this machine is, what is right, how fast it is, and what to do next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage_a import CHECKS, HEALTH, HOPPER, MEMORY, PROFILE, SWEEP
from benchmarks.gpu.steps import Findings, Stage
from benchmarks.kernels import row as names
from benchmarks.kernels.plan import DENSITIES, FIRST_SHAPES
from benchmarks.kernels.row import Row
from benchmarks.kernels.verdicts import Table

LINES = 10
_UNTIMED = "unmeasured"


def story(findings: Findings, minutes: float, seconds: float, stages: Sequence[Stage]) -> list[str]:
    """Ten lines, whatever is known: what is not says so."""
    machine = findings.machine
    table = Table(_rows(findings.files.get("kernels")))
    versions = ", ".join(f"{name} {machine[name]}" for name in ("driver", "torch", "triton") if name in machine)
    sweeps = [step for step in findings.steps if step.name.startswith(SWEEP)]
    found = [f"{step.name.removeprefix(SWEEP).lstrip(', ') or step.word}: {step.said or step.word}" for step in sweeps]
    return [
        f"Device: {machine['device']} ({versions}); {seconds / 60:.1f} of {minutes:g} min for {', '.join(stages)}.",
        f"It works: {_step(findings, HEALTH)}.",
        f"Kernels against the reference: {_step(findings, CHECKS)}.",
        f"Memory checker: {_step(findings, MEMORY)}; profile: {_step(findings, PROFILE)}.",
        f"Configurations: {'; '.join(found) or 'not swept'}.",
        f"{'; '.join(f'{step}: {_step(findings, step)}; {_speeds(table, of)}' for of, step in HOPPER.items())}.",
        f"Speed of attend, pointer kernel: {_speeds(table, 'pointer')}.",
        f"Against peers at {min(DENSITIES):g}: {_peers(table)}.",
        f"End to end, balanced, 20 steps: {_end_to_end(findings.files.get('e2e'))}.",
        f"Next: {_next(findings, stages)}",
    ]


def _step(findings: Findings, name: str) -> str:
    step = findings.step(name)
    if step is None:
        return "not tried"
    return f"{step.word}, {step.said}" if step.said else step.word


def _rows(path: Path | None) -> list[Row]:
    known = {field.name for field in fields(Row)}
    rows = _read(path).get("rows", [])
    return [Row(**{name: value for name, value in row.items() if name in known}) for row in rows]


def _read(path: Path | None) -> dict[str, Any]:
    if path is None or not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _speeds(table: Table, variant: str) -> str:
    """Of both shapes that targets are about, at every density: time over density x the best dense call."""
    said = []
    for shape in FIRST_SHAPES:
        rows = [table.find(names.ATTEND, shape.name, density, variant) for density in DENSITIES]
        cells = [f"{ratio:.2f}" for row in rows if row is not None and (ratio := table.ratio(row)) is not None]
        if cells:
            said.append(f"{shape.name} {' / '.join(cells)} x density x dense")
    return "; ".join(said) or _UNTIMED


def _peers(table: Table) -> str:
    """Time of each peer over ours, on the first shape; of one that chooses its own blocks, over our whole call."""
    shape, density = FIRST_SHAPES[0].name, min(DENSITIES)
    said = []
    for row in table.rows:
        if row.kind != "peer" or (row.shape, row.density) != (shape, density) or not row.seconds or not row.executed:
            continue
        what = names.WHOLE if row.what.endswith("sol_attn") else names.ATTEND
        ours = table.find(what, shape, density, "pointer")
        if ours is not None and ours.seconds and ours.executed:
            said.append(f"{row.what} {row.by} {row.seconds / row.executed / (ours.seconds / ours.executed):.2f} x ours")
    return "; ".join(said) or _UNTIMED


def _end_to_end(path: Path | None) -> str:
    verdicts = _read(path).get("verdicts", [])
    said = [f"{one['target'].split(',')[0]} {one['said'].split(' (')[0]} ({one['word']})" for one in verdicts]
    return "; ".join(said) or _UNTIMED


def _next(findings: Findings, stages: Sequence[Stage]) -> str:
    wrong = next((step for step in findings.steps if step.word == "wrong"), None)
    if wrong is not None and wrong.name in (HEALTH, CHECKS):
        return f"mend what is wrong first ({wrong.name}): nothing is worth timing before that."
    if wrong is not None:
        return f"mend what is wrong ({wrong.name}); what else is told stands."
    late = next((step for step in findings.steps if step.word == "not run" and "left" in step.said), None)
    if late is not None:
        return f"call it again, it goes on: {late.name} had no time."
    missing = [stage for stage in ("a", "b", "c") if stage not in stages]
    if missing:
        return f"--stage {missing[0]}."
    if any(step.word == "unmeasured" for step in findings.steps):
        return "the same on a GPU: nothing here was timed."
    return "commit the results and the tuning tables, whatever they say."
