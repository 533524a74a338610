"""``python run.py bench e2e``: whole denoising steps of full-size models with random weights, dense against sparse.

Wan 14B and HunyuanVideo 1.5 at 720p, built on the device by their diffusers classes, each in a process with a time
limit. Every density that the balanced preset asks for in a run of 20 and of 4 steps is timed as one step (one
evaluation of the transformer, batch 1), the first sparse step of a run apart, with what a run pays once; the factor of
a run is the sum of its steps, without text encoder and VAE.
Without a GPU (or with --dry-run) tiny models of the same classes run on the CPU, and every time is unmeasured.
JSON and Markdown go to benchmarks/results, named by the device.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.e2e.models import MODELS
from benchmarks.e2e.runs import (
    ASSUMED_TFLOPS,
    BUILDING,
    TARGETS,
    estimate,
    first_densities,
    runs_of,
    verdict,
    wanted_densities,
)
from benchmarks.kernels.journal import Journal, going_on, sources_digest
from benchmarks.kernels.process import Deadline, Outcome, Task, run_in_turn
from benchmarks.kernels.report import machine, result_file, write_files
from benchmarks.kernels.row import first_line

RESULTS = Path(__file__).resolve().parents[1] / "results"
NAMES = tuple(TARGETS)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench e2e", description="Time whole denoising steps.")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU, nothing is timed")
    parser.add_argument("--plan", action="store_true", help="print how long it may take, and end")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"of {list(NAMES)}")
    parser.add_argument("--backend", default="auto", help="backend of the sparse steps")
    parser.add_argument("--repeats", type=int, default=2, help="timed steps per density, after one to warm up")
    parser.add_argument("--minutes", type=float, default=8.5, help="stop after that long")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files, or a .json file")
    options = parser.parse_args(argv)
    if not 1 <= options.repeats <= 20:
        parser.error("--repeats must lie between 1 and 20")
    limit = 60.0 * options.minutes
    if options.plan:
        print(f"Stops after {options.minutes:g} minutes, each model after its share of them.")
        for name in options.models:
            try:
                expected = f"{estimate(MODELS[name], options.repeats):8.0f} s expected"
            except ImportError as error:
                expected = f" cannot run: {first_line(error)}; "
            print(f"{name:30}{expected}{limit / len(options.models):8.0f} s at most")
        print(f"Assumed, not measured: {ASSUMED_TFLOPS:g} TFLOP/s throughout, {BUILDING:g} s to load and build.")
        return 0
    measured = torch.cuda.is_available() and not options.dry_run

    work = {"kind": "model", "densities": wanted_densities(), "first": first_densities()}
    work |= {"backend": options.backend, "repeats": options.repeats}
    tasks = [Task(name, {**work, "model": name}, limit / len(options.models)) for name in options.models]
    about, device = machine(measured), "cuda" if measured else "cpu"
    part = " ".join(["part", *options.models]) if set(options.models) != set(NAMES) else ""
    journal = Journal(result_file(options.out, "e2e", about, measured, part=part), about, sources_digest())
    outcomes: list[tuple[str, Outcome]] = []
    deadline = Deadline.after(options.minutes)

    def keep(task: Task, outcome: Outcome) -> None:
        _tell(task, outcome)
        outcomes.append((task.name, outcome))
        # Written as it goes: what a machine that is taken away has measured is not lost.
        results = collect(about, measured, outcomes)
        write_files(journal.path, results, markdown(results))

    going_on(tasks, device, journal, keep, lambda left, told: run_in_turn(left, device, deadline, told))
    print(markdown(collect(about, measured, outcomes)))
    return 0 if all(outcome.ok for _, outcome in outcomes) else 1


def collect(about: dict[str, Any], measured: bool, outcomes: list[tuple[str, Outcome]]) -> dict[str, Any]:
    """Everything, as plain values."""
    rows = [row for _, outcome in outcomes for row in outcome.rows]
    runs = [run for name, _ in outcomes for run in runs_of(name, rows)]
    found = [said for run in runs if (said := verdict(run, str(about["device"]))) is not None]
    return {
        "machine": about,
        "measured": measured,
        "steps": [row.to_dict() for row in rows],
        "runs": [asdict(run) for run in runs],
        "verdicts": [asdict(one) | {"word": one.word} for one in found],
        "jobs": [one.to_dict(name) for name, one in outcomes],
    }


def markdown(results: dict[str, Any]) -> str:
    """The page for readers."""

    def cell(value: float | None, form: str, factor: float = 1.0) -> str:
        return "" if value is None else format(value * factor, form)

    lines = ["# End to end", "", "  \n".join(f"{key}: {value}" for key, value in results["machine"].items()), ""]
    if not results["measured"]:
        lines += ["Tiny models of the same classes: the densities are those of tiny grids, times are unmeasured.", ""]
    lines += ["| target (H200) | | |", "|---|---|---|"]
    lines += [f"| {v['target']} | **{v['word']}** | {v['said']} |" for v in results["verdicts"]]
    lines += ["", "| balanced preset | steps | executed | x dense | without what a run pays once |", "|" + "---|" * 5]
    for run in results["runs"]:
        factors = [cell(run[name], ".2f") or "unmeasured" for name in ("factor", "later_factor")]
        lines.append(f"| {run['model']} | {run['steps']} | {cell(run['executed'], '.3f')} | {' | '.join(factors)} |")
    lines += ["", "One step is one evaluation of the transformer at batch 1, random weights, bfloat16.", ""]
    lines += ["| model | step | density | executed | attention by | s | +- | weights GiB | peak GiB | note |"]
    lines += ["|" + "---|" * 10]
    for row in results["steps"]:
        note = row["note"] if row["status"] == "timed" else f"{row['status']}: {row['note']}".removesuffix(": ")
        cells = (
            row["shape"],
            row["what"],
            cell(row["density"], ".2f"),
            cell(row["executed"], ".3f"),
            row["by"],
            cell(row["seconds"], ".3f"),
            cell(row["spread"], ".0%"),
            cell(row["io_bytes"], ".1f", 2.0**-30),
            cell(row["extra_bytes"], ".1f", 2.0**-30),
            note,
        )
        lines.append("| " + " | ".join(cells) + " |")
    bad = [job for job in results["jobs"] if job["verdict"] != "done"]
    lines += ["", *(f"- {job['name']}: {job['verdict']}" for job in bad), ""]
    return "\n".join(lines)


def _tell(task: Task, outcome: Outcome) -> None:
    print(f"{task.name}: {outcome.verdict}, {len(outcome.rows)} rows, {outcome.seconds:.0f} s", flush=True)
    print("".join(f"    {row.brief()}\n" for row in outcome.rows), end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
