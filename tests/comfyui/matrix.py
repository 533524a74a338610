"""python -m tests.comfyui.matrix: run every check on each ComfyUI of COMFYUI_PATHS, write docs/compatibility.md."""

from __future__ import annotations

import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from demo.comfyui_path import NOT_FOUND, PACK_ROOT, ComfyUIInstall, find_all_comfyui
from tests.comfyui.model_cases import CASES, Case
from tests.comfyui.results import names, results

TARGET = PACK_ROOT / "docs" / "compatibility.md"
MARKS = {"passed": "yes", "skipped": "-", "failed": "**no**"}

HEAD = """# Compatibility

Written by `python -m tests.comfyui.matrix` from test results, not by hand. Last run {date}: {versions}; torch {torch},
CPU, float32, ComfyUI's own model classes with small random weights, sampled by ComfyUI's own sampler.

yes: every check passed. -: this version does not have the model or the feature. **no**: a check failed.

## Models

For each model the tests mark every patch of the latent and find it again in the queries of the first self-attention, so
grid and extra tokens are checked token by token. Running every block through the sparse path must give the unpatched
model's result to a relative 1e-4, and sparse runs must serve all of the video self-attention.

"""

BEHAVIOUR = """
## Behaviour

"""

DENSE = """
Dense by design: MiniMax-H3 (ComfyUI's own node Model Sparse Attention serves it), any model not in the table, and any
call whose tokens do not add up, with the reason in the report.
"""


def main() -> int:
    """Exit code 1 if something failed, 2 without a ComfyUI."""
    installs = find_all_comfyui()
    if not installs:
        print(NOT_FOUND, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        found = {
            (install, module): results(install, module, Path(folder))
            for install in installs
            for module in ("check_models", "check_behaviour")
        }
    failures = [
        f"ComfyUI {install.version}, {name}: {result if name == '' else result['detail']}"
        for (install, _), checks in found.items()
        for name, result in checks.items()
        if name == "" or result["outcome"] == "failed"
    ]
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page(installs, found), encoding="utf-8")
    print(f"wrote {TARGET.relative_to(PACK_ROOT)}", *failures, sep="\n")
    return 1 if failures else 0


def page(installs: list[ComfyUIInstall], found: dict[tuple[ComfyUIInstall, str], dict[str, Any]]) -> str:
    versions = ", ".join(f"ComfyUI {install.version}" for install in installs)
    date = datetime.now(timezone.utc).date().isoformat()
    head = HEAD.format(date=date, versions=versions, torch=torch.__version__.split("+")[0])
    columns = [f"{install.version}" for install in installs]

    def outcomes(module: str, name: str) -> list[str]:
        states = [found[install, module].get(name, {"outcome": "failed"})["outcome"] for install in installs]
        return [MARKS[state] for state in states]

    models = [[case.name, sequence(case), *outcomes("check_models", case.name)] for case in CASES]
    checks = [[name, *outcomes("check_behaviour", name)] for name in names("check_behaviour")]
    return "".join(
        [
            head,
            table(["Model", "Tokens of the call", *columns], models),
            DENSE,
            BEHAVIOUR,
            table(["Check", *columns], checks),
        ]
    )


def sequence(case: Case) -> str:
    """Such as "text, video": what the tokens are, in their order."""
    return ", ".join(
        part for part in (case.extra if case.before else "", "video", case.extra if case.after else "") if part
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
