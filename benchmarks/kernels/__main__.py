"""``python run.py bench kernels [--quick]``: the GPU kernels, right first and then timed, in one run on one machine.

Everything runs in processes of its own with time limits, so that a deadlock is a result and not a hang. While a kernel
that the pack ships is wrong no speed is told; a variant that is opt-in is checked and timed after all others and loses
its own speeds only. Without a GPU (or with --dry-run) the same work is done on tiny calls by Triton's interpreter, and
every speed is unmeasured. JSON and Markdown go to benchmarks/results, named by the device and by what was asked for,
and a journal of the jobs beside them: called again, the bench goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.checks import checks_for
from benchmarks.kernels.graphs import TAILS, graph_rows
from benchmarks.kernels.interpreter import interpreter_lacks
from benchmarks.kernels.journal import Journal, Told, going_on, sources_digest
from benchmarks.kernels.peers import PEERS, Peer, load, missing
from benchmarks.kernels.plan import (
    DENSITIES,
    FIRST_SHAPES,
    FULL,
    QUICK,
    SHAPES,
    TARGET_PEERS,
    TINY,
    TINY_DENSITIES,
    Effort,
    Job,
    Shape,
    dense_job,
    describe,
    ours_job,
    peer_job,
)
from benchmarks.kernels.process import Deadline, Outcome, Task, run_at_once, run_in_turn, run_until_one_hangs
from benchmarks.kernels.report import Results, machine, markdown, result_file, write_files
from benchmarks.kernels.row import Kind, Row
from benchmarks.kernels.variants import VARIANTS, Variant
from benchmarks.kernels.verdicts import verdicts

RESULTS = Path(__file__).resolve().parents[1] / "results"
# On a CPU the interpreter takes its time.
DRY_MINUTES = 120.0
CHECK_LIMITS = {"cuda": 150.0, "cpu": 1200.0}
# One that is opt-in, and may hang, is not waited for as long: a share of the limit.
HASTE = 0.4


def parser() -> argparse.ArgumentParser:
    """The command line."""
    asking = argparse.ArgumentParser(prog="run.py bench kernels", description="Check, then time, the GPU kernels.")
    asking.add_argument(
        "--quick", action="store_true", help="short measurements, peers on the first shapes only: under 9 minutes"
    )
    asking.add_argument("--dry-run", action="store_true", help="no speeds: tiny calls on the CPU")
    asking.add_argument("--plan", action="store_true", help="print what would run and how long it may take, and end")
    asking.add_argument("--minutes", type=float, help="stop after that long (8.5 with --quick, else 40; dry 120)")
    asking.add_argument("--peers", nargs="*", choices=list(PEERS), metavar="NAME", help=f"only of {list(PEERS)}")
    asking.add_argument("--variants", nargs="+", choices=list(VARIANTS), metavar="NAME", help=f"of {list(VARIANTS)}")
    names = [shape.name for shape in (*SHAPES, *TINY)]
    asking.add_argument("--shapes", nargs="+", choices=names, metavar="NAME", help=f"only of {names}")
    asking.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files, or a .json file")
    return asking


def main(argv: list[str] | None = None) -> int:
    asking = parser()
    options = asking.parse_args(argv)

    if options.minutes is not None and options.minutes <= 0:
        asking.error("--minutes must be positive")
    measured = torch.cuda.is_available() and not options.dry_run
    device = "cuda" if measured else "cpu"
    effort = QUICK if options.quick else FULL
    if options.minutes is not None or not (measured or options.plan):
        effort = replace(effort, minutes=options.minutes or DRY_MINUTES)
    peers = {name: target for name, target in PEERS.items() if options.peers is None or name in options.peers}
    # A plan is one for a GPU, also where there is none.
    for_gpu = measured or options.plan
    variants = {name: one for name, one in VARIANTS.items() if options.variants is None or name in options.variants}
    shapes = tuple(s for s in (SHAPES if for_gpu else TINY) if options.shapes is None or s.name in options.shapes)
    if not shapes:
        asking.error(f"none of the shapes {', '.join(options.shapes)} is one of this run's: see --help")
    checks = checks_for("cuda" if for_gpu else "cpu", options.quick, variants)
    wanted, absent = jobs(effort, peers, for_gpu, shapes, variants)
    at_once = max(1, min(8, (os.cpu_count() or 1) // 2)) if for_gpu else 1
    if options.plan:
        print(describe(len(checks) + len(variants) * len(TAILS), CHECK_LIMITS["cuda"], at_once, wanted, effort))
        print("\n".join(f"left out, {row.what} {row.by}: {row.note}" for row in absent))
        return 0
    if importlib.util.find_spec("triton") is None:
        asking.error("the kernels need the package triton, which is not installed here")

    deadline = Deadline.after(effort.minutes)
    about = machine(measured)
    path = result_file(options.out, "kernels", about, measured, part=_part(options))
    journal = Journal(path, about, sources_digest())
    rows, outcomes, named = [*absent], list[tuple[str, Outcome]](), list[tuple[str, Outcome]]()
    red: list[str] = []

    def write() -> Results:
        results = collect(about, measured, red, rows, outcomes, named, variants)
        write_files(journal.path, results.to_dict(), markdown(results))
        return results

    def check(names: Iterable[str], patience: float, run: Callable[[list[Task], Told], list[Outcome]]) -> None:
        """Check some variants, and put down what that forbids."""
        some = [one for one in checks if one.variant in names]
        tasks = [Task(one.name, one.work(), patience) for one in some]
        graphs = [(name, tails) for name in variants if name in names for tails in TAILS]
        if measured:
            tasks += [_graph_task(*graph, patience) for graph in graphs]
        found = going_on(tasks, device, journal, _tell, run)
        named.extend(zip((task.name for task in tasks), found))
        rows.extend(_checked(tasks, found))
        if not measured:
            rows.extend(row for graph in graphs for row in graph_rows(*graph, torch.device(device)))
        forbidden, _ = judge(rows)
        red[:] = forbidden
        write()

    def measure(some: list[Job]) -> None:
        turn = [Task(job.name, job.work, job.limit if measured else CHECK_LIMITS["cpu"]) for job in some]

        def keep(task: Task, outcome: Outcome) -> None:
            _tell(task, outcome)
            outcomes.append((task.name, outcome))
            # Written as it goes: what a machine that is taken away has measured is not lost.
            write()

        going_on(turn, device, journal, keep, lambda left, told: run_in_turn(left, device, deadline, told))

    opt_in = [name for name, one in variants.items() if not one.required]
    lacks = None if measured else interpreter_lacks()
    if lacks is not None:
        rows += [Row("check", one.name, "skipped", by=one.variant, note=lacks) for one in checks]
        checks, wanted = [], [job for job in wanted if job.work["kind"] != "ours"]
    required = [name for name in variants if name not in opt_in]
    check(required, CHECK_LIMITS[device], lambda left, told: run_at_once(left, device, deadline, at_once, told))
    if not red:
        measure([job for job in wanted if job.work.get("variant") not in opt_in])
        # Last, and one at a time: a kernel that hangs shares the device with nothing that is still to be measured.
        if opt_in:
            patience = HASTE * CHECK_LIMITS[device]
            check(opt_in, patience, lambda left, told: run_until_one_hangs(left, device, deadline, told))
            _, broken = judge(rows)
            measure([job for job in wanted if job.work.get("variant") in set(opt_in) - broken])
    results = write()
    print(markdown(results))
    return 1 if results.red or unproven(results.rows, options.variants or ()) else 0


def unproven(rows: Iterable[Row], named: Iterable[str]) -> list[str]:
    """Variants that were asked for by name and are not shown to be right: that is an answer, not a footnote."""
    rows = list(rows)

    def shown(name: str) -> bool:
        found = [row for row in rows if row.by == name and row.kind in ("check", "ours")]
        bad = any(row.status in ("wrong", "failed") for row in found)
        return not bad and any(row.status in ("right", "unmeasured", "timed") for row in found)

    return [name for name in named if not shown(name)]


def _part(options: argparse.Namespace) -> str:
    """What is asked for, in the words of a file name; empty for the whole bench."""
    words = ["quick"] if options.quick else []
    for name, one in (("variants", options.variants), ("shapes", options.shapes), ("peers", options.peers)):
        if one is not None:
            words += ["part", *(one or [f"no {name}"])]
    return " ".join(words)


def jobs(
    effort: Effort,
    peers: dict[str, str],
    for_gpu: bool,
    shapes: tuple[Shape, ...] = SHAPES,
    variants: Mapping[str, Variant] = VARIANTS,
) -> tuple[list[Job], list[Row]]:
    """The jobs in the order of their worth, and rows for peers that are not there.

    Everyone's dense attention on all shapes, so that one best dense call holds for all that is compared with it; then
    on the first shapes our variants and the peers that targets name; then our variants, those peers and the others on
    the shapes that are left.
    """
    densities = DENSITIES if for_gpu else TINY_DENSITIES
    there, absent = _installed(peers, "cuda" if for_gpu else "cpu")
    first = tuple(shape for shape in shapes if shape in FIRST_SHAPES) if for_gpu else shapes
    rest = tuple(shape for shape in shapes if shape not in first)
    compiled: set[int] = set()
    wanted = [dense_job(shapes, effort)]

    def ours(some: tuple[Shape, ...], name: str, one: Variant) -> None:
        for shape in some:
            compiles = not one.required or shape.dim not in compiled
            wanted.append(ours_job(shape, name, effort, densities, required=one.required, compiles=compiles))
            compiled.add(shape.dim)

    def of_peers(names: Iterable[str], some: tuple[Shape, ...], kind: str) -> None:
        for name in names:
            count = sum(peer.kind == kind for peer in there.get(name, ()))
            if count and some:
                wanted.append(peer_job(name, peers[name], {kind: count}, effort, some, densities))

    others = [name for name in peers if name not in TARGET_PEERS]
    of_peers(peers, shapes, "dense")
    for some in (first, rest):
        for name, one in variants.items():
            if one.required or some is first or effort.everywhere:
                ours(some, name, one)
        if some is first or effort.everywhere:
            of_peers((name for name in TARGET_PEERS if name in peers), some, "peer")
    of_peers(others, shapes if effort.everywhere else shapes[:1], "peer")
    return wanted, absent


def _installed(peers: dict[str, str], device_type: str) -> tuple[dict[str, list[Peer]], list[Row]]:
    """Peers that can be tried, by package, and rows for the others."""
    there: dict[str, list[Peer]] = {}
    absent = []
    for name, target in peers.items():
        for peer in load(target):
            why = missing(peer, device_type)
            if why is None:
                there.setdefault(name, []).append(peer)
            else:
                absent.append(Row(peer.kind, peer.name, "skipped", by=peer.by, note=why))
    return there, absent


def _graph_task(variant: str, tails: str, limit: float) -> Task:
    return Task(f"{variant}, CUDA graph, {tails}", {"kind": "graph", "variant": variant, "tails": tails}, limit)


def _checked(tasks: list[Task], outcomes: list[Outcome]) -> list[Row]:
    """A row per check, also where the child never said anything."""
    rows: list[Row] = []
    for task, outcome in zip(tasks, outcomes):
        if outcome.ok and outcome.rows:
            rows += outcome.rows
        else:
            by, said = task.work["variant"], outcome.verdict
            kind: Kind = "graph" if task.work.get("kind") == "graph" else "check"
            rows.append(Row(kind, task.name, "failed", by=by, seconds=outcome.seconds, note=said))
    return rows


def judge(check_rows: list[Row]) -> tuple[list[str], set[str]]:
    """What forbids any speed, and the opt-in variants that lose theirs."""
    red, broken = [], set()
    for row in check_rows:
        if row.kind == "check" and row.status in ("wrong", "failed"):
            if VARIANTS[row.by].required:
                red.append(f"{row.what}: {row.note}")
            else:
                broken.add(row.by)
    return red, broken


def collect(
    about: dict[str, Any],
    measured: bool,
    red: list[str],
    rows: list[Row],
    outcomes: list[tuple[str, Outcome]],
    checked: Iterable[tuple[str, Outcome]] = (),
    variants: Mapping[str, Variant] = VARIANTS,
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
        for name, one in variants.items()
        if one.required or any(row.by == name and row.kind == "ours" for row in rows)
    )
    return Results(dict(about), measured, tuple(red), tuple(rows), tuple(checked), tuple(outcomes), found)


def _withheld(row: Row, variant: str) -> bool:
    return row.kind == "ours" and row.by == variant and row.status == "timed"


def _tell(task: Task, outcome: Outcome) -> None:
    print(f"{task.name}: {outcome.verdict}, {len(outcome.rows)} rows, {outcome.seconds:.0f} s", flush=True)
    print("".join(f"    {row.brief()}\n" for row in outcome.rows), end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
