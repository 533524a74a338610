"""``python run.py bench kernels [--quick]``: the GPU kernels, right first and then timed, in one run on one machine.

Everything runs in processes of its own with time limits, so that a deadlock is a result and not a hang. While a kernel
that the pack ships is wrong no speed is told; a variant that is opt-in then loses its own speeds only. Without a GPU
(or with --dry-run) the same work is done on tiny calls by Triton's interpreter, and every speed is unmeasured.
JSON and Markdown go to benchmarks/results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from .checks import checks_for
from .peers import PEERS, load, missing
from .plan import (
    DENSITIES,
    FULL,
    QUICK,
    SHAPES,
    TARGET_PEERS,
    TINY,
    TINY_DENSITIES,
    Effort,
    Job,
    dense_job,
    describe,
    ours_job,
    peer_job,
)
from .process import Deadline, Outcome, Task, run_at_once, run_in_turn
from .report import Results, machine, markdown
from .row import Row
from .variants import VARIANTS
from .verdicts import verdicts

RESULTS = Path(__file__).resolve().parents[1] / "results"
# On a CPU the interpreter takes its time.
DRY_MINUTES = 120.0
CHECK_LIMITS = {"cuda": 150.0, "cpu": 1200.0}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench kernels", description="Check, then time, the GPU kernels.")
    parser.add_argument("--quick", action="store_true", help="short measurements, peers on two shapes: under 9 minutes")
    parser.add_argument("--dry-run", action="store_true", help="no speeds: tiny calls on the CPU")
    parser.add_argument("--plan", action="store_true", help="print what would run and how long it may take, and end")
    parser.add_argument("--minutes", type=float, help="stop after that long (8.5 with --quick, else 40; dry 120)")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), metavar="NAME", help=f"only of {list(PEERS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(argv)

    if options.minutes is not None and options.minutes <= 0:
        parser.error("--minutes must be positive")
    measured = torch.cuda.is_available() and not options.dry_run
    device = "cuda" if measured else "cpu"
    effort = QUICK if options.quick else FULL
    if options.minutes is not None or not (measured or options.plan):
        effort = replace(effort, minutes=options.minutes or DRY_MINUTES)
    peers = {name: target for name, target in PEERS.items() if options.peers is None or name in options.peers}
    # A plan is one for a GPU, also where there is none.
    for_gpu = measured or options.plan
    checks = checks_for("cuda" if for_gpu else "cpu", options.quick)
    wanted, absent = jobs(effort, peers, for_gpu)
    at_once = max(1, min(8, (os.cpu_count() or 1) // 2)) if for_gpu else 1
    if options.plan:
        print(describe(len(checks), CHECK_LIMITS["cuda"], at_once, wanted, effort))
        print("\n".join(f"left out, {row.what} {row.by}: {row.note}" for row in absent))
        return 0
    if importlib.util.find_spec("triton") is None:
        parser.error("the kernels need the package triton, which is not installed here")

    deadline = Deadline.after(effort.minutes)
    # One that is opt-in, and may hang, is not waited for as long.
    patience = {name: 1.0 if variant.required else 0.6 for name, variant in VARIANTS.items()}
    tasks = [Task(one.name, one.work(), patience[one.variant] * CHECK_LIMITS[device]) for one in checks]
    check_rows = _checked(tasks, run_at_once(tasks, device, deadline, at_once, _tell))
    red, broken = judge(check_rows)
    outcomes: list[tuple[str, Outcome]] = []
    if not red:
        wanted = [job for job in wanted if job.work.get("variant") not in broken]
        turn = [Task(job.name, job.work, job.limit if measured else CHECK_LIMITS["cpu"]) for job in wanted]
        outcomes = list(zip((task.name for task in turn), run_in_turn(turn, device, deadline, _tell)))
    results = collect(machine(measured), measured, red, [*check_rows, *absent], outcomes)
    write(results, options.out, "kernels" if measured else "kernels-dry-run")
    return 1 if results.red else 0


def jobs(effort: Effort, peers: dict[str, str], measured: bool) -> tuple[list[Job], list[Row]]:
    """The jobs in the order of their worth, and rows for peers that are not there."""
    shapes, peer_shapes = (SHAPES, effort.peer_shapes) if measured else (TINY, TINY)
    densities = DENSITIES if measured else TINY_DENSITIES
    device_type = "cuda" if measured else "cpu"
    wanted = [dense_job(shapes, effort)]
    wanted += [
        ours_job(shape, name, effort, densities) for name, one in VARIANTS.items() if one.required for shape in shapes
    ]
    absent = []
    of_peers = []
    for name, target in peers.items():
        there = []
        for peer in load(target):
            why = missing(peer, device_type)
            if why is None:
                there.append(peer)
            else:
                absent.append(Row(peer.kind, peer.name, "skipped", by=peer.by, note=why))
        if there:
            taken = peer_shapes if not measured or name in TARGET_PEERS else peer_shapes[: effort.other_shapes]
            of_peers.append(peer_job(name, target, len(there), effort, taken, densities))
    # Those of the targets first, which are timed on more shapes, then variants that are opt-in, then the others.
    wanted += of_peers[:2]
    for name, one in VARIANTS.items():
        if not one.required:
            wanted += [ours_job(shape, name, effort, densities) for shape in peer_shapes]
    return wanted + of_peers[2:], absent


def _checked(tasks: list[Task], outcomes: list[Outcome]) -> list[Row]:
    """A row per check, also where the child never said anything."""
    rows: list[Row] = []
    for task, outcome in zip(tasks, outcomes):
        if outcome.ok and outcome.rows:
            rows += outcome.rows
        else:
            by, said = task.work["variant"], outcome.verdict
            rows.append(Row("check", task.name, "failed", by=by, seconds=outcome.seconds, note=said))
    return rows


def judge(check_rows: list[Row]) -> tuple[list[str], set[str]]:
    """What forbids any speed, and the opt-in variants that lose theirs."""
    red, broken = [], set()
    for row in check_rows:
        if row.status in ("wrong", "failed"):
            if VARIANTS[row.by].required:
                red.append(f"{row.what}: {row.note}")
            else:
                broken.add(row.by)
    return red, broken


def collect(
    about: dict[str, object], measured: bool, red: list[str], rows: list[Row], outcomes: list[tuple[str, Outcome]]
) -> Results:
    """Results of the jobs, with speeds withheld where a kernel proved wrong at full size."""
    rows = [*rows, *(row for _, outcome in outcomes for row in outcome.rows)]
    red = [*red]
    for name, variant in VARIANTS.items():
        wrong = [row for row in rows if row.kind == "ours" and row.by == name and row.status == "wrong"]
        if wrong:
            why = f"withheld: {wrong[0].what} was wrong at {wrong[0].shape}"
            rows = [row.without_speed(why) if _withheld(row, name) else row for row in rows]
            if variant.required:
                red += [f"{row.what}, {row.shape}, density {row.density}: {row.note}" for row in wrong]
    found = tuple(
        (name, tuple(verdicts(rows, str(about["device"]), name)))
        for name in VARIANTS
        if VARIANTS[name].required or any(row.by == name and row.kind == "ours" for row in rows)
    )
    return Results(dict(about), measured, tuple(red), tuple(rows), tuple(outcomes), found)


def _withheld(row: Row, variant: str) -> bool:
    return row.kind == "ours" and row.by == variant and row.status == "timed"


def write(results: Results, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results.to_dict(), indent=2) + "\n", encoding="utf-8")
    page = markdown(results)
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)


def _tell(task: Task, outcome: Outcome) -> None:
    print(f"{task.name}: {outcome.verdict}, {len(outcome.rows)} rows, {outcome.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
