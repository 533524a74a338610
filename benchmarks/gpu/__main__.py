"""``python run.py bench gpu --minutes N``: what a GPU can tell, in the order of its worth, within N minutes.

Stage a: does the device work, are the kernels right (reference, memory checker), which configuration is fastest; what
is found is written to a tuning table that the kernels read from then on. Stage b: kernels against peers. Stage c: whole
denoising steps. It stops by itself, everything is on disk after every step, and called again it goes on. It ends with
ten lines that tell the story.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.e2e import __main__ as e2e
from benchmarks.gpu.stage_a import CHECKS, HEALTH, HOPPER, StageA
from benchmarks.gpu.steps import Findings, Stage, Step, Word
from benchmarks.gpu.story import story
from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels.journal import Journal, sources_digest
from benchmarks.kernels.process import GRACE, Deadline
from benchmarks.kernels.report import machine, result_file
from draftattention.kernels.tuning import FOLDER

RESULTS = Path(__file__).resolve().parents[1] / "results"
# How the minutes are shared out; what a stage leaves goes to those after it.
SHARES: dict[Stage, float] = {"a": 7.0, "b": 9.0, "c": 9.0}
KERNELS, END_TO_END = "kernels against peers", "end to end"
# A stage is begun only where at least this is left, seconds.
WORTH_BEGINNING = 45.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench gpu", description="All that a GPU can tell, best first.")
    parser.add_argument("--minutes", type=float, required=True, help="stop after that long, whatever happens")
    parser.add_argument("--stage", choices=list(SHARES), action="append", help="only this one; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--tables", type=Path, default=FOLDER, help="folder of the tuning tables (the kernels' own)")
    parser.add_argument("--dry-run", action="store_true", help="no speeds: tiny calls on the CPU")
    options = parser.parse_args(argv)
    if not 0 < options.minutes <= 24 * 60:
        parser.error("--minutes must be positive, and at most a day")
    if importlib.util.find_spec("triton") is None:
        parser.error("the kernels need the package triton, which is not installed here")
    begun, deadline = time.monotonic(), Deadline.after(options.minutes)
    measured = torch.cuda.is_available() and not options.dry_run
    device = "cuda" if measured else "cpu"
    about = machine(measured)
    journal = Journal(result_file(options.out, "gpu", about, measured), about, sources_digest(tables=False))
    findings = Findings(about, journal.path)
    wanted: list[Stage] = [stage for stage in SHARES if options.stage is None or stage in options.stage]

    def tell() -> list[str]:
        lines = story(findings, options.minutes, time.monotonic() - begun, wanted)
        findings.write(lines)
        return lines

    tell()
    for index, stage in enumerate(wanted):
        share = SHARES[stage] / sum(SHARES[one] for one in wanted[index:])
        seconds = share * max(0.0, deadline.left())
        why = _forbids(findings, stage) or (
            f"{deadline.left():.0f} s were left" if deadline.left() < WORTH_BEGINNING else None
        )
        if why is not None:
            findings.add(Step(stage, _NAMES[stage], "not run", why))
        elif stage == "a":
            until = Deadline(time.monotonic() + seconds + GRACE)
            at_once = max(1, min(8, (os.cpu_count() or 1) // 2)) if measured else 1
            try:
                StageA(findings, journal, device, until, at_once, options.tables, tell).run()
            except Exception as error:
                findings.add(Step(stage, "stage a", "wrong", f"{type(error).__name__}: {error}"[:200]))
        elif stage == "b":
            variants = ["--variants", "pointer", *(one for one in HOPPER if _is_right(journal, device, one))]
            arguments = ["--quick", *(variants if measured else [])]
            _bench(findings, "b", "kernels", kernels.main, arguments, seconds, options)
        else:
            _bench(findings, "c", "e2e", e2e.main, [], seconds, options)
        tell()
    lines = tell()
    print("\n" + "\n".join(f"{number:2}. {line}" for number, line in enumerate(lines, 1)))
    print(f"\nIn full: {journal.path}.md, .json")
    return 1 if any(step.word == "wrong" for step in findings.steps) else 0


_NAMES: dict[Stage, str] = {"a": HEALTH, "b": KERNELS, "c": END_TO_END}


def _forbids(findings: Findings, stage: Stage) -> str | None:
    """Why a stage makes no sense, or None."""
    if stage == "a":
        return None
    for name in (HEALTH, CHECKS):
        step = findings.step(name)
        if step is not None and step.word == "wrong":
            return f"{name}: {step.said[:160]}"
    if stage == "c" and importlib.util.find_spec("diffusers") is None:
        return "diffusers is not installed"
    return None


def _is_right(journal: Journal, device: str, variant: str) -> bool:
    """Whether stage a, now or in an earlier call, has seen every check of an opt-in kernel right."""
    outcomes = [journal.known(task, device) for task in StageA.hopper_tasks(device, variant)]
    good = ("right", "unmeasured")
    return all(one is not None and one.rows and all(row.status in good for row in one.rows) for one in outcomes)


def _bench(
    findings: Findings,
    stage: Stage,
    kind: str,
    run: Callable[[list[str]], int],
    arguments: list[str],
    seconds: float,
    options: argparse.Namespace,
) -> None:
    """Another bench as a step. Whatever it raises is its verdict."""
    name, begun = _NAMES[stage], time.monotonic()
    word: Word = "done"
    dry = ["--dry-run"] if options.dry_run else []
    file = options.out / f"{findings.path.name.replace('gpu', kind, 1)}.json"
    arguments = [*arguments, "--minutes", f"{seconds / 60:.3f}", "--out", str(file), *dry]
    try:
        code = run(arguments)
        said = "" if code == 0 else "some of it did not end well, see its page"
        # A model that time did not reach is no fault; a kernel that is wrong is one.
        word = "wrong" if code and stage == "b" else "done"
    except (Exception, SystemExit) as error:
        word, said = "wrong", f"{type(error).__name__}: {error}"[:200]
    # A journal of other sources lies there: then its results are in the file with the next number.
    found = sorted(file.parent.glob(f"{file.stem}*.json"), key=lambda path: path.stat().st_mtime)
    if found:
        findings.files[kind] = found[-1]
    findings.add(Step(stage, name, word, said, time.monotonic() - begun))


if __name__ == "__main__":
    sys.exit(main())
