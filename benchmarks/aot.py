"""``python run.py bench aot``: compile the kernels for GPUs that are not here and check what they would need there.

Without --all a representative subset; with it every kernel in every shipped configuration for every target, and the
table goes to docs/kernels-aot.md. Exit code 1 if something would spill, not fit, or lacks its matrix instructions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

from .aot_cases import Planned, all_cases, representative_cases
from .aot_compile import TARGETS, Compiled, compile_case

TABLE = Path(__file__).resolve().parents[1] / "docs" / "kernels-aot.md"


@dataclass(frozen=True)
class Row:
    """A compiled case as the table shows it."""

    target: str
    name: str
    registers: int
    spilled: int
    shared: int
    warps: int
    instructions: str
    verdict: str


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench aot", description="Compile the GPU kernels without a GPU.")
    parser.add_argument("--all", action="store_true", help="everything that is shipped; writes docs/kernels-aot.md")
    parser.add_argument("--page", action="store_true", help="write docs/kernels-aot.md whatever was compiled")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this target (may be repeated)")
    parser.add_argument("--kernel", help="only kernels whose name contains this")
    options = parser.parse_args(argv)
    chosen = all_cases() if options.all else representative_cases()
    plan = [
        planned
        for planned in chosen
        if (not options.target or planned.target in options.target) and (options.kernel or "") in planned.case.name
    ]
    start = time.monotonic()
    results = run(plan)
    failed = [result for result in results if result.problems]
    print(f"{len(results)} compiled in {time.monotonic() - start:.0f} s, {len(failed)} with problems")
    whole = options.all and not options.target and not options.kernel
    if whole or options.page:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table(results, "all" if whole else "the representative part"), encoding="utf-8")
        print(f"wrote {TABLE.relative_to(TABLE.parents[1])}")
    return 1 if failed else 0


def run(plan: Iterable[Planned]) -> list[Compiled]:
    """Compile everything planned, a line for each."""
    results = []
    for planned in plan:
        result = compile_case(planned.case, planned.target)
        results.append(result)
        row = row_of(result)
        print(f"{row.target:8} {row.name}: {row.registers} registers, {row.shared} B shared, {row.verdict}", flush=True)
    return results


def row_of(result: Compiled) -> Row:
    instructions = " ".join(f"{name}:{count}" for name, count in result.instructions.items() if count)
    verdict = "; ".join(result.problems) or ("known: " + "; ".join(result.known) if result.known else "ok")
    return Row(
        result.target,
        result.case.name,
        result.registers,
        result.spilled,
        result.shared,
        result.warps,
        instructions,
        verdict,
    )


def table(results: list[Compiled], scope: str) -> str:
    """The Markdown page."""
    rows = [row_of(result) for result in results]
    lines = [
        "# Kernels compiled ahead of time",
        "",
        f"Written by `python run.py bench aot` for {scope} of what `--all` compiles, with Triton {triton.__version__} "
        f"and torch {torch.__version__.split('+')[0]}, on a machine without a GPU: the compiler's figures, not speeds. "
        "Registers and stack are per thread (VGPRs on AMD), shared memory per program in bytes. `known` marks stack "
        "use that is listed as unavoidable in `benchmarks/aot_cases.py`; `docs/kernels.md` says what the kernels do.",
        "",
        "| target | kernel | registers | stack B | shared B | warps | instructions | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = (r.target, r.name, r.registers, r.spilled, r.shared, r.warps, r.instructions, r.verdict)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
