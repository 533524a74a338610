"""docs/kernels-aot.md: per Triton version, a run's figures in short and the commit whose kernels they are of."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence

from draftattention.kernels.configs import SHARED_LIMIT
from tools.aot.compile import Compiled
from tools.aot.interpret import Interpreted
from tools.aot.judge import judge, load_known
from tools.aot.store import ROOT, WORK

PAGE = ROOT / "docs" / "kernels-aot.md"
TOTALS = ("Triton", "commit", "cases", "without stack", "known stack", "of these in loops", "most B", "problems")
TARGETS = ("Triton", *SHARED_LIMIT)
INTERPRETED = ("Triton", "commit", "files", "passed", "failed", "skipped", "left out")


class NotCommittedError(Exception):
    """The kernels are those of no commit, in words for the user."""


def commit() -> str:
    """The commit whose kernels are here.

    Raises:
        NotCommittedError: if they were edited since, or if this is no git repository.
    """
    head = _git("rev-parse", "--short", "HEAD")
    if _git("status", "--porcelain", "--", "kernels", "tests/kernels/interpreted"):
        raise NotCommittedError("the summary names a commit: commit the kernels and their cases first")
    return head


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotCommittedError(f"the summary names a commit, and git does not tell it: {error}") from error


def publish(version: str, results: Sequence[Compiled], made_from: str) -> None:
    """Put the figures of a whole run into the place of those that this Triton version had on the page."""
    text = PAGE.read_text(encoding="utf-8")
    text = with_row(text, TOTALS, (version, made_from, len(results), *totals(version, results)))
    text = with_row(text, TARGETS, (version, *(_stack_of(target, results) for target in SHARED_LIMIT)))
    PAGE.write_text(text, encoding="utf-8")


def publish_interpreted(version: str, done: Sequence[Interpreted], made_from: str) -> None:
    """The same for a run of all interpreted tests."""
    ran = [one for one in done if not one.left_out]
    reasons = dict.fromkeys(one.left_out for one in done if one.left_out)
    left_out = "; ".join(f"{', '.join(one.name for one in done if one.left_out == why)}: {why}" for why in reasons)
    counts = [sum(getattr(one, name) for one in ran) for name in ("passed", "failed", "skipped")]
    row = (version, made_from, f"{len(ran)} of {len(done)}", *counts, left_out)
    PAGE.write_text(with_row(PAGE.read_text(encoding="utf-8"), INTERPRETED, row), encoding="utf-8")


def with_row(text: str, head: Sequence[str], cells: Sequence[object]) -> str:
    """Markdown with a row in the table of this head, instead of the row that began with the same version.

    Raises:
        ValueError: if there is no such table.
    """
    lines = text.splitlines()
    start = lines.index(_line(head)) + 2
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    rows = {line.split(" | ")[0].strip("| "): line for line in (*lines[start:end], _line(cells))}
    ordered = [rows[version] for version in sorted(rows, key=lambda version: [*map(int, version.split("."))])]
    return "\n".join([*lines[:start], *ordered, *lines[end:]]) + "\n"


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def totals(version: str, results: Iterable[Compiled]) -> tuple[int, int, int, int, int]:
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


def _stack_of(target: str, results: Iterable[Compiled]) -> str:
    stacks = [result.stack for result in results if result.target == target]
    spilling = sum(stack > 0 for stack in stacks)
    return f"{spilling} of {len(stacks)}" + (f", {max(stacks)} B" if spilling else "")


def write_full(version: str, results: Sequence[Compiled]) -> str:
    """Write a table with every case beside the results, and return its path, relative to the repository."""
    known = load_known().get(version, {})
    lines = [f"# Triton {version}, case by case"]
    for target in dict.fromkeys(result.target for result in results):
        lines += ["", f"## {target}, {SHARED_LIMIT[target]} B of shared memory", ""]
        lines += [_line(("kernel", "registers", "stack B", "in loops", "shared B", "warps", "instructions", "verdict"))]
        lines += ["|---" * 8 + "|"]
        for r in results:
            if r.target == target:
                instructions = " ".join(f"{name}:{count}" for name, count in r.instructions.items() if count)
                verdict = judge(r, known.get(target, {}).get(r.name, 0))
                cells = (r.name, r.registers, r.stack, r.loop_stack, r.shared, r.warps, instructions, verdict)
                lines.append(_line(cells))
    path = WORK / f"triton-{version}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.relative_to(ROOT).as_posix()
