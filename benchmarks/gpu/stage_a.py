"""Stage a: does the device work, are the kernels right, do they keep to their memory, which configuration is fastest.

In the order of worth. The opt-in kernels for Hopper come last and alone, since they are the ones that may hang.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import health
from benchmarks.gpu.steps import Findings, Step, Word
from benchmarks.gpu.sweep import DENSITY, base, best, candidates, combined, seconds_by_config, words
from benchmarks.gpu.tools import memory_checker, profiled, profiler
from benchmarks.kernels.checks import checks_for
from benchmarks.kernels.interpreter import interpreter_lacks
from benchmarks.kernels.journal import Journal, Told, going_on
from benchmarks.kernels.plan import QUICK, SHAPES, TINY, Shape
from benchmarks.kernels.process import (
    OUT_OF_TIME,
    Deadline,
    Outcome,
    Task,
    run_at_once,
    run_in_turn,
    run_until_one_hangs,
)
from benchmarks.kernels.row import Row
from draftattention.kernels.configs import AttendConfig, triton_version
from draftattention.kernels.tuning import TuningTable, read_table, same_triton, write_table

HEALTH, CHECKS, MEMORY, SWEEP, PROFILE = (
    "health",
    "kernels against the reference",
    "memory checker",
    "sweep",
    "profile of one launch",
)
# Opt-in kernels for Hopper: variants of `bench kernels`, and the steps that check them. They may hang.
HOPPER = {"hopper": "Hopper kernel against the reference", "gluon": "Gluon kernel against the reference"}
# Seconds a child may take, on a GPU and interpreted.
LIMITS = {
    "cuda": {
        HEALTH: 90.0,
        CHECKS: 150.0,
        MEMORY: 150.0,
        SWEEP: 120.0,
        PROFILE: 90.0,
        **dict.fromkeys(HOPPER.values(), 60.0),
    },
    "cpu": dict.fromkeys((HEALTH, CHECKS, MEMORY, SWEEP, PROFILE, *HOPPER.values()), 1200.0),
}
# A head size is swept only where at least this is left: less would end among its candidates.
SWEEPING = 60.0

Run = Callable[[list[Task], Told], list[Outcome]]


@dataclass
class StageA:
    """The steps of stage a on one machine.

    Attributes:
        findings: gets the steps.
        journal: of the children.
        device: "cuda", or "cpu" for a dry run.
        deadline: of the stage.
        at_once: children at a time where nothing is timed.
        tables: folder that tuning tables are written to.
        wrote: called after every step.
    """

    findings: Findings
    journal: Journal
    device: str
    deadline: Deadline
    at_once: int
    tables: Path
    wrote: Callable[[], object]

    def run(self) -> None:
        """All steps that make sense and have time."""
        if not self._health():
            return
        lacks = interpreter_lacks() if self.device == "cpu" else None
        if lacks is not None:
            for name in (CHECKS, SWEEP, *HOPPER.values()):
                self._add(name, "not run", lacks)
            return
        right = self._checks()
        self._memory()
        if right:
            self._sweep()
            self._profile()
        self._hopper()

    def _health(self) -> bool:
        tasks = [Task(HEALTH, {"kind": "health"}, LIMITS[self.device][HEALTH])]
        (outcome,), seconds = self._children(tasks, self._alone)
        bad = _bad(outcome)
        device, architecture = (self._told(name) for name in (health.DEVICE, health.ARCHITECTURE))
        said = bad or f"{device}, {architecture}"
        self._add(HEALTH, "wrong" if bad else self._right, said, seconds)
        return not bad

    def _checks(self) -> bool:
        limit = LIMITS[self.device][CHECKS]
        tasks = [Task(one.name, one.work(), limit) for one in checks_for(self.device, True, ["pointer"])]
        return self._compare(CHECKS, tasks, self._together)

    def _memory(self) -> None:
        under = memory_checker() if self.device == "cuda" else None
        if under is None:
            self._add(MEMORY, "missing", "compute-sanitizer is not here" if self.device == "cuda" else "no GPU")
            return
        check = checks_for(self.device, True, ["pointer"])[0]
        tasks = [Task(MEMORY, check.work(), LIMITS[self.device][MEMORY], under)]
        (outcome,), seconds = self._children(tasks, self._alone)
        if outcome.verdict.startswith(("no answer", "not run", "stopped")):
            self._add(MEMORY, "not run", outcome.verdict, seconds)
            return
        bad = _bad(outcome)
        lines = outcome.said if bad else ()
        self._add(MEMORY, "wrong" if bad else "right", bad or f"nothing, on {check.name}", seconds, lines)

    def _sweep(self) -> None:
        """Head size 128 first; a table is written after each."""
        architecture, sizes = self._told(health.ARCHITECTURE), (128, 64) if self.device == "cuda" else (64,)
        for dim in sizes:
            name = f"{SWEEP}, head size {dim}"
            if self.deadline.left() < SWEEPING:
                self._add(name, "not run", f"{max(0.0, self.deadline.left()):.0f} s were left")
                continue
            start, begun = base(architecture, dim), time.monotonic()
            wanted = candidates(start) if self.device == "cuda" else candidates(start)[:2]
            right, late = self._right_of(wanted, dim)
            if start not in right:
                word: Word = "not run" if late else "wrong"
                said = f"no time was left for {late}" if late else "the fixed row itself is not right"
                self._add(name, word, said, time.monotonic() - begun)
                continue
            seconds = self._times(right, dim, "one by one")
            merged = combined(start, seconds)
            finalists = [start, *([min(seconds, key=lambda one: seconds[one])] if seconds else [])]
            finalists += self._right_of([merged], dim)[0] if merged not in finalists else []
            finalists = list(dict.fromkeys(finalists))
            if len(finalists) > 1 and seconds:
                again = self._times(finalists, dim, "the best once more")
                seconds = again if start in again else seconds
            verdict, told = self._conclude(architecture, dim, start, seconds)
            left = f", no time was left for {late}" if late else ""
            said = f"{len(right)} of {len(wanted)} configurations right{left}; {told}"
            self._add(name, verdict, said, time.monotonic() - begun)

    def _right_of(self, configs: list[AttendConfig], dim: int) -> tuple[list[AttendConfig], int]:
        """Those that give what the reference gives, each tried in a child of its own; for how many time was short."""
        limit = LIMITS[self.device][SWEEP]
        tasks = [
            Task(f"head size {dim}, {words(one)}", {"kind": "candidate", "dim": dim, "config": asdict(one)}, limit)
            for one in configs
        ]
        outcomes, _ = self._children(tasks, self._together)
        return [one for one, outcome in zip(configs, outcomes) if not _bad(outcome)], sum(map(_late, outcomes))

    def _times(self, configs: list[AttendConfig], dim: int, label: str) -> dict[AttendConfig, float]:
        work = _sweep_work(dim, self.device, configs)
        task = Task(f"times at head size {dim}, {label}", work, max(90.0, 15.0 * len(configs)))
        (outcome,), _ = self._children([task], self._alone)
        return seconds_by_config(outcome.rows, configs)

    def _conclude(
        self, architecture: str, dim: int, start: AttendConfig, seconds: dict[AttendConfig, float]
    ) -> tuple[Word, str]:
        """The word and sentence of a sweep; its table is written if it found something."""
        if start not in seconds:
            return "unmeasured" if self.device == "cpu" else "not run", "the fixed row was not timed"
        found = best(start, seconds)
        if found is None:
            return "done", f"the fixed row {words(start)} holds: {1e3 * seconds[start]:.2f} ms, no table"
        config, gain = found
        triton = triton_version()
        before = read_table(architecture, self.tables)
        kept = before if before is not None and same_triton(before.triton, triton) else None
        conditions = f"attend with its tail, bfloat16, density {DENSITY}, blocks {_shape(dim, self.device).q_block}/"
        conditions += f"{_shape(dim, self.device).k_block}, {_shape(128, self.device).name} and head size 64"
        table = TuningTable(
            architecture,
            str(self.findings.machine["device"]),
            triton,
            conditions,
            {**(kept.attend if kept else {}), dim: asdict(config)},
            {**(kept.gain if kept else {}), dim: round(gain, 4)},
        )
        path = write_table(table, self.tables)
        times = f"{1e3 * seconds[config]:.2f} ms instead of {1e3 * seconds[start]:.2f} with {words(start)}"
        return "done", f"{words(config)}: {gain:.2f} x, {times}; in {path.name}"

    def _profile(self) -> None:
        under = profiler("attend_kernel") if self.device == "cuda" else None
        if under is None:
            self._add(PROFILE, "missing", "ncu is not here" if self.device == "cuda" else "no GPU")
            return
        architecture = self._told(health.ARCHITECTURE)
        table = read_table(architecture, self.tables)
        found = None if table is None else table.attend.get(128)
        config = base(architecture, 128) if found is None else AttendConfig(**found)
        task = Task(PROFILE, _sweep_work(128, self.device, [config]), LIMITS[self.device][PROFILE], under)
        (outcome,), seconds = self._children([task], self._alone)
        said = profiled(outcome.said) if outcome.ok else outcome.verdict
        self._add(PROFILE, "done" if outcome.ok else "not run", said, seconds, outcome.said)

    def _hopper(self) -> None:
        for variant, name in HOPPER.items():
            if self.device == "cuda" and self._told(health.ARCHITECTURE) != "sm_90":
                self._add(name, "missing", f"this is {self._told(health.ARCHITECTURE)}")
            else:
                self._compare(name, self.hopper_tasks(self.device, variant), self._one_by_one)

    @staticmethod
    def hopper_tasks(device: str, variant: str) -> list[Task]:
        """Its checks, which a later stage looks up in the journal."""
        limit = LIMITS[device][HOPPER[variant]]
        return [Task(one.name, one.work(), limit) for one in checks_for(device, True, [variant])]

    def _compare(self, name: str, tasks: list[Task], run: Run) -> bool:
        outcomes, seconds = self._children(tasks, run)
        bad = [f"{task.name}: {said}" for task, one in zip(tasks, outcomes) if (said := _bad(one))]
        late = [one for one in outcomes if _late(one)]
        skipped = [row.note for one in outcomes for row in one.rows if row.status == "skipped"]
        worst = max((row.off for one in outcomes for row in one.rows if row.off is not None), default=None)
        if late and len(late) == len(bad):
            self._add(name, "not run", f"no time was left for {len(late)} of {len(tasks)}", seconds)
            return False
        if bad:
            self._add(name, "wrong", f"{len(bad)} of {len(tasks)} bad; {bad[0][:240]}", seconds)
            return False
        if skipped:
            self._add(name, "not run", skipped[0], seconds)
            return False
        told = f"{len(tasks)} checks" + (f", at most {worst:.1e} off" if worst is not None else "")
        self._add(name, self._right, told, seconds)
        return True

    def _children(self, tasks: list[Task], run: Run) -> tuple[list[Outcome], float]:
        begun = time.monotonic()

        def told(task: Task, outcome: Outcome) -> None:
            print(f"    {task.name}: {outcome.verdict}, {outcome.seconds:.0f} s", flush=True)

        outcomes = going_on(tasks, self.device, self.journal, told, run)
        self.findings.outcomes |= {task.name: outcome for task, outcome in zip(tasks, outcomes)}
        return outcomes, time.monotonic() - begun

    def _together(self, tasks: list[Task], told: Told) -> list[Outcome]:
        return run_at_once(tasks, self.device, self.deadline, self.at_once, told)

    def _one_by_one(self, tasks: list[Task], told: Told) -> list[Outcome]:
        return run_until_one_hangs(tasks, self.device, self.deadline, told)

    def _alone(self, tasks: list[Task], told: Told) -> list[Outcome]:
        return run_in_turn(tasks, self.device, self.deadline, told)

    def _told(self, name: str) -> str:
        outcome = self.findings.outcomes.get(HEALTH)
        return next((row.note for row in (outcome.rows if outcome else ()) if row.what == name), "")

    @property
    def _right(self) -> Word:
        return "right" if self.device == "cuda" else "unmeasured"

    def _add(self, name: str, word: Word, said: str, seconds: float = 0.0, lines: tuple[str, ...] = ()) -> None:
        self.findings.add(Step("a", name, word, said, seconds, lines))
        self.wrote()


def _late(outcome: Outcome) -> bool:
    """Whether time was short for a child."""
    return outcome.verdict == OUT_OF_TIME or outcome.verdict.startswith("not run: no time")


def _bad(outcome: Outcome) -> str:
    """What is wrong with what a child found, or with the child; empty if nothing is."""
    wrong: list[Row] = [row for row in outcome.rows if row.status in ("wrong", "failed")]
    if wrong:
        return f"{wrong[0].what}: {wrong[0].status}, {wrong[0].note}".removesuffix(", ")
    return "" if outcome.ok and outcome.rows else outcome.verdict


def _shape(dim: int, device: str) -> Shape:
    return next(shape for shape in (SHAPES if device == "cuda" else TINY) if shape.dim == dim)


def _sweep_work(dim: int, device: str, configs: list[AttendConfig]) -> dict[str, Any]:
    effort = {"seconds": QUICK.seconds, "least": QUICK.least, "most": QUICK.most}
    shape = asdict(_shape(dim, device))
    return {"kind": "sweep", "shape": shape, "configs": [asdict(one) for one in configs], "effort": effort}
