"""The tables of docs/kernels-aot*.md, written from the committed results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from draftattention.kernels.configs import SHARED_LIMIT
from tools.aot.compile import Compiled, fingerprint
from tools.aot.interpret import table
from tools.aot.judge import judge, load_known
from tools.aot.plan import all_cases
from tools.aot.store import ROOT, Store, committed_versions, results_file

DOCS = ROOT / "docs"


def main_version() -> str:
    """The Triton that is developed and tested with."""
    pins = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    found = re.search(r"^triton==([\d.]+)", pins, re.MULTILINE)
    if found is None:
        raise RuntimeError("requirements-dev.txt does not pin Triton")
    return found[1]


def write_pages() -> list[Path]:
    """Write every page; their paths, relative to the repository."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return [path.relative_to(ROOT) for path in pages()]


def pages() -> dict[Path, str]:
    """Path -> Markdown: one page per Triton version, that of the main one with the overview."""
    results = {version: Store(results_file(version)) for version in committed_versions()}
    written = {}
    for version, store in results.items():
        if version != main_version():
            text = f"# Kernels compiled ahead of time: Triton {version}\n\nSee [kernels-aot.md](kernels-aot.md).\n"
            written[DOCS / _page(version)] = text + _tables(version, store.results)
    main = main_version()
    text = _overview(results)
    if main in results:
        text += f"\n# Triton {main}, case by case\n" + _tables(main, results[main].results)
    written[DOCS / _page(main)] = text
    return written


def _page(version: str) -> str:
    return "kernels-aot.md" if version == main_version() else f"kernels-aot-{version}.md"


def _overview(results: dict[str, Store]) -> str:
    plan = all_cases()
    current = {fingerprint(planned) for planned in plan}
    lines = [
        "# Kernels compiled ahead of time",
        "",
        "Written by `python run.py bench aot --all`: every kernel in every shipped configuration, compiled for each "
        "architecture on a machine without a GPU. These are the compiler's figures, not speeds. Registers and stack "
        "are per thread (VGPRs on AMD), shared memory is bytes per program. Stack is what did not fit into registers; "
        "`in loops` is how many instructions inside loops touch it: what rests there over a loop costs little. "
        "A case with stack that is not listed in `tools/aot/known.json` with exactly that many bytes, with more "
        "shared memory than its architecture has, or without the instructions it should use is a problem, and fails "
        "`tests/kernels/test_aot.py` for the version of Triton that is developed with.",
        "",
        "```",
        "python run.py bench aot                          # the representative part, minutes",
        "python run.py bench aot --all                    # everything; goes on where it was stopped",
        "python run.py bench aot --all --triton 3.6.0     # the same with another Triton, fetched by pip",
        "```",
        "",
        f"There are {len(plan)} cases. `now` counts results of the kernels as they are now; others are older than the "
        "last change of a kernel or its configuration.",
        "",
        "| Triton | cases | now | without stack | known stack | of these in loops | most B | problems |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for version, store in results.items():
        counted = _count(version, store.results)
        now = len(current & set(store.fingerprints))
        cells = (f"[{version}]({_page(version)})", len(store.results), now, *counted)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "Cases with stack, and the most bytes, by architecture:", ""]
    lines += ["| Triton | " + " | ".join(SHARED_LIMIT) + " |", "|---" * (1 + len(SHARED_LIMIT)) + "|"]
    for version, store in results.items():
        cells = [version]
        for target in SHARED_LIMIT:
            stacks = [result.stack for result in store.results if result.target == target]
            spilling = sum(stack > 0 for stack in stacks)
            cells.append(f"{spilling} of {len(stacks)}, {max(stacks)} B" if spilling else f"0 of {len(stacks)}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Interpreted",
        "",
        "The same kernels against the reference on the CPU (`tests/kernels/interpreted`), by each Triton's "
        "interpreter. `now` counts files whose kernels and cases are still as they were then. Interpreters before "
        "3.7 need numpy before 2.4.",
        "",
        "```",
        "python run.py bench aot --triton 3.6.0                # compiles, then interprets",
        "python run.py bench aot --interpret --triton 3.6.0    # interprets only; without --triton: with the one here",
        "```",
        "",
        *table(),
    ]
    return "\n".join(lines) + "\n"


def _count(version: str, results: Iterable[Compiled]) -> tuple[int, int, int, int, int]:
    """Cases without stack, with known stack, those of them that touch it in loops, most bytes, cases with problems."""
    known = load_known().get(version, {})
    plain = listed = looping = most = wrong = 0
    for result in results:
        verdict = judge(result, known.get(result.target, {}).get(result.name, 0))
        wrong += bool(verdict.problems)
        listed += bool(verdict.known)
        looping += bool(verdict.known and result.loop_stack)
        plain += not verdict.problems and not verdict.known
        most = max(most, result.stack)
    return plain, listed, looping, most, wrong


def _tables(version: str, results: list[Compiled]) -> str:
    known = load_known().get(version, {})
    lines = []
    for target in dict.fromkeys(result.target for result in results):
        lines += ["", f"## {target}, {SHARED_LIMIT[target]} B of shared memory", ""]
        lines += [
            "| kernel | registers | stack B | in loops | shared B | warps | instructions | verdict |",
            "|---" * 8 + "|",
        ]
        for r in results:
            if r.target == target:
                instructions = " ".join(f"{name}:{count}" for name, count in r.instructions.items())
                verdict = judge(r, known.get(target, {}).get(r.name, 0))
                cells = (r.name, r.registers, r.stack, r.loop_stack, r.shared, r.warps, instructions, verdict)
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"
