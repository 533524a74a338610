"""python -m tests.comfyui.matrix [FOLDER]: run every check on each ComfyUI of COMFYUI_PATHS.

Writes docs/compatibility.md. With a FOLDER the results stay there, and those
it holds already are not made again: a run that was stopped goes on.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from tests.comfyui.model_cases import CASES, Case
from tests.comfyui.results import MODULES, names, results, start_up
from tools.comfyui.path import NOT_FOUND, PACK_ROOT, ComfyUIInstall, find_all_comfyui

TARGET = PACK_ROOT / "docs" / "compatibility.md"
MARKS = {"passed": "yes", "skipped": "-", "failed": "**no**"}
DENSE_MARK = "dense"

HEAD = """# Compatibility

Written by `python -m tests.comfyui.matrix` from test results, not by hand. Last run {date}: {versions}; torch {torch},
CPU, float32, ComfyUI's own model classes with small random weights (with the demo's trained ones where a row says so),
sampled by ComfyUI's own sampler.

yes: every check passed. dense: runs dense, with the reason in the report, and the checks of that passed. -: this
version does not have the model or the feature. **no**: a check failed.

## Models

For each model the tests mark every patch of the latent and find it again in the queries of the first self-attention, so
grid and extra tokens are checked token by token. Running every block through the sparse path must give the unpatched
model's result to a relative 1e-4, and sparse runs must serve all of the video self-attention. A model that runs dense
must give the unpatched model's result to the bit, with its calls under one named reason and a note that says why.

"""

BEHAVIOUR = """
## Behaviour

"""

START_UP = """
## Start-up

Loading the pack when ComfyUI starts imports no module but its own. Without Triton it took {times} of CPU time.
"""

DENSE = """
Dense as well: any model not in the table, and any call whose tokens do not add up, with the reason in the report.
"""


def main() -> int:
    """Exit code 1 if something failed, 2 without a ComfyUI."""
    installs = find_all_comfyui()
    if not installs:
        print(NOT_FOUND, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = sys.argv[1] if len(sys.argv) > 1 else temporary
        Path(folder).mkdir(parents=True, exist_ok=True)
        found = {
            (install, module): results(install, module, Path(folder)) for install in installs for module in MODULES
        }
        starts = {install: start_up(install, Path(folder))["cpu_seconds"] for install in installs}
    failures = [
        f"ComfyUI {install.version}, {name}: {result if name == '' else result['detail']}"
        for (install, _), checks in found.items()
        for name, result in checks.items()
        if name == "" or result["outcome"] == "failed"
    ]
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page(installs, found, starts), encoding="utf-8")
    print(f"wrote {TARGET.relative_to(PACK_ROOT)}", *failures, sep="\n")
    return 1 if failures else 0


def page(
    installs: list[ComfyUIInstall],
    found: dict[tuple[ComfyUIInstall, str], dict[str, Any]],
    starts: dict[ComfyUIInstall, float],
) -> str:
    """docs/compatibility.md.

    Args:
        found: outcomes of each module's checks.
        starts: CPU seconds of loading the pack.
    """
    versions = ", ".join(f"ComfyUI {install.version}" for install in installs)
    date = datetime.now(timezone.utc).date().isoformat()
    head = HEAD.format(date=date, versions=versions, torch=torch.__version__.split("+")[0])
    checks = [
        [name, *(MARKS[state] for state in outcomes(installs, found, module, name))]
        for module in MODULES[1:]
        for name in names(module)
    ]
    head_row = ["Check", *(install.version for install in installs)]
    start = START_UP.format(times=", ".join(f"{starts[i]:.2f} s on {i.version}" for i in installs))
    return "".join([head, models(installs, found), DENSE, BEHAVIOUR, table(head_row, checks), start])


def models(installs: list[ComfyUIInstall], found: dict[tuple[ComfyUIInstall, str], dict[str, Any]]) -> str:
    """Table of the models."""
    rows = [
        [case.name, sequence(case), *(mark(case, state) for state in outcomes(installs, found, MODULES[0], case.name))]
        for case in CASES
    ]
    return table(["Model", "Tokens of the call", *(install.version for install in installs)], rows)


def outcomes(
    installs: list[ComfyUIInstall], found: dict[tuple[ComfyUIInstall, str], dict[str, Any]], module: str, name: str
) -> list[str]:
    return [found[install, module].get(name, {"outcome": "failed"})["outcome"] for install in installs]


def mark(case: Case, outcome: str) -> str:
    return DENSE_MARK if case.dense and outcome == "passed" else MARKS[outcome]


def documented(page_text: str) -> dict[str, dict[str, str]]:
    """Per model or check, the mark of every ComfyUI version in a page with these tables."""
    rows: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in page_text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells and cells[0] in ("Model", "Check"):
            columns = cells
        elif cells and not cells[0].startswith("---"):
            rows[cells[0]] = {key: value for key, value in zip(columns, cells, strict=True) if key[0].isdigit()}
    return rows


def sequence(case: Case) -> str:
    """Such as "text, video": what the tokens are, in their order; for a model that runs dense, the reason's name."""
    if case.dense:
        return f"dense: {case.dense_reason or 'not shown to nodes'}"
    return ", ".join(
        part for part in (case.extra if case.before else "", "video", case.extra if case.after else "") if part
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
