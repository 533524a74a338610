"""The kernel bench ends in time: children that hang, die or do not fit, and what is planned for the time there is."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from benchmarks.kernels import __main__ as bench
from benchmarks.kernels.peers import PEERS
from benchmarks.kernels.plan import (
    DENSITIES,
    QUICK,
    SHAPES,
    TINY,
    Effort,
    dense_job,
    peer_job,
)
from benchmarks.kernels.process import GRACE, Child, Deadline, Outcome, Task, run_at_once, run_in_turn
from benchmarks.kernels.row import WHOLE, Row, row_of

VIDEO = replace(TINY[0], heads=1)

EFFORT = Effort(0.0, 1, 1, 1.0, everywhere=True)


def fake(name: str) -> str:
    return f"tests.benchmarks.stand_ins:{name}"


def work_of(name: str) -> dict[str, object]:
    return peer_job(name, fake(name), {"peer": 1}, EFFORT, (VIDEO,), (0.9, 0.25)).work


def test_a_child_that_never_answers_is_stopped() -> None:
    child = Child(work_of("DEADLOCKS"), "cpu")
    assert child._ready.wait(300)
    outcome = child.work(4.0)
    assert outcome.verdict == "no answer within 4 s, stopped" and outcome.rows == ()
    assert child._process.poll() is not None


def test_no_child_outlives_its_bench() -> None:
    child = Child(work_of("DEADLOCKS"), "cpu")
    assert child._process.stdin is not None
    child._process.stdin.write("go\n")
    child._process.stdin.close()
    assert child._process.wait(300) == 1


def test_a_child_that_dies_leaves_its_rows_and_its_last_words() -> None:
    outcome = Child(work_of("DIES"), "cpu").work(300.0)
    assert outcome.verdict.startswith("exit code 7")
    assert [(row.density, row.status) for row in outcome.rows] == [(0.9, "unmeasured")]
    assert outcome.said == ("first words", "  last words")


def test_what_does_not_fit_is_named_and_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr("benchmarks.kernels.process.Child", lambda work, device: started.append(work))
    told: list[str] = []
    tasks = [Task("one", {}, 60.0), Task("two", {}, 60.0)]
    outcomes = run_in_turn(tasks, "cpu", Deadline.after(0.1), lambda task, outcome: told.append(task.name))
    assert not started and told == ["one", "two"]
    assert all(outcome.verdict.startswith("not run: ") for outcome in outcomes)
    assert run_at_once(tasks, "cpu", Deadline.after(0.0), 2, lambda *_: None)[0].verdict.startswith("not run")


def test_no_limit_reaches_past_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every child is given at most what is left, the next one is up while one works, and none is left over."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limits, alive = [], []

    class Stuck:
        def __init__(self, work: dict[str, object], device: str) -> None:
            alive.append(self)

        def work(self, limit: float) -> Outcome:
            alive.remove(self)
            limits.append(limit)
            now[0] += limit
            return Outcome((), f"no answer within {limit:.0f} s, stopped", limit)

        def stop(self) -> None:
            alive.remove(self)

    monkeypatch.setattr("benchmarks.kernels.process.Child", Stuck)
    tasks = [Task(str(i), {}, 100.0) for i in range(9)]
    outcomes = run_in_turn(tasks, "cuda", Deadline.after(QUICK.minutes), lambda *_: None)
    assert now[0] + GRACE <= QUICK.minutes * 60 < 9 * 60 - 3 * GRACE
    assert not alive and outcomes[-1].verdict.startswith("not run")
    assert sum(limits) == now[0]


def test_the_plan_holds_every_shape_and_density_of_the_issue() -> None:
    wanted, _ = bench.jobs(QUICK, PEERS, True)
    cells = {
        (shape["name"], density)
        for job in wanted
        if job.work["kind"] == "ours"
        for shape in job.work["shapes"]
        for density in job.work["densities"]
    }
    assert cells == {(shape.name, density) for shape in SHAPES for density in DENSITIES}
    assert [shape["name"] for shape in dense_job(SHAPES, QUICK).work["shapes"]] == [shape.name for shape in SHAPES]
    assert all(job.limit >= job.estimate for job in wanted)


def test_rows_survive_the_pipe_and_chatter_does_not() -> None:
    row = Row("ours", WHOLE, "timed", "S", seconds=1.0, note="a | b")
    assert row_of(row.line()) == row
    assert row_of("a warning") is None and row_of(row.line()[:-4]) is None
