"""A bench that is cut off loses nothing and goes on: its journal, and what a hang costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kernels import __main__ as bench
from benchmarks.kernels import interpreter, process
from benchmarks.kernels.journal import Journal, going_on
from benchmarks.kernels.process import OUT_OF_TIME, Deadline, Outcome, Task, run_at_once, run_until_one_hangs
from benchmarks.kernels.row import Row

ABOUT = {"device": "H200", "driver": "580.1", "torch": "2.11.0", "degC": "41"}
ROW = Row("ours", "attend", "timed", "S", "pointer", 0.25, 0.26, 1.5e-3, note="a | b")
DONE = Outcome((ROW,), "done", 4.0)


def task(name: str = "job", **work: object) -> Task:
    return Task(name, {"kind": "ours", **work}, 60.0)


def opened(folder: Path, sources: str = "s", **about: str) -> Journal:
    return Journal(folder / "kernels-h200", {**ABOUT, **about}, sources)


def test_what_is_done_is_known_again_with_all_its_figures(tmp_path: Path) -> None:
    opened(tmp_path).keep(task(), "cuda", DONE)
    # Warmer than before, but the same machine.
    again = opened(tmp_path, degC="60")
    assert again.known(task(), "cuda") == DONE
    assert again.known(task(density=0.5), "cuda") is None and again.known(task(), "cpu") is None


def test_what_did_not_come_to_its_end_is_not_taken_for_done(tmp_path: Path) -> None:
    opened(tmp_path).keep(task(), "cuda", Outcome((ROW,), "exit code 7", 4.0, ("last words",)))
    assert opened(tmp_path).known(task(), "cuda") is None


def test_half_a_line_and_nonsense_cost_themselves_only(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.keep(task("first"), "cuda", DONE)
    with journal.file.open("a") as file:
        file.write(
            '[1]\n{"verdict": "done", "rows": [7], "key": "x", "seconds": 1}\n{"verdict": "done", "rows": [{}]}\n'
        )
        file.write('{"verdict": "done", "ro')
    assert opened(tmp_path).known(task("first"), "cuda") == DONE


@pytest.mark.parametrize("other", [{"sources": "t"}, {"device": "H100"}, {"driver": "590.1"}])
def test_another_machine_or_other_sources_begin_a_journal_beside_it(other: dict[str, str], tmp_path: Path) -> None:
    opened(tmp_path).keep(task(), "cuda", DONE)
    before = (tmp_path / "kernels-h200.jsonl").read_bytes()
    second = opened(tmp_path, **other)
    assert second.path == tmp_path / "kernels-h200-2" and second.known(task(), "cuda") is None
    second.keep(task(), "cuda", DONE)
    assert (tmp_path / "kernels-h200.jsonl").read_bytes() == before
    assert opened(tmp_path, **other).path == second.path


def test_results_without_a_journal_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "kernels-h200.json").write_text("{}")
    assert opened(tmp_path).path == tmp_path / "kernels-h200-2"


def test_only_what_is_left_is_run_and_all_is_told_in_order(tmp_path: Path) -> None:
    tasks = [task(str(number), number=number) for number in range(4)]
    journal = opened(tmp_path)
    journal.keep(tasks[1], "cuda", DONE)
    ran, told = [], []

    def run(left: list[Task], tell: object) -> list[Outcome]:
        assert callable(tell)
        outcomes = [DONE, Outcome((), "not run: 3 s were left", 0.0), Outcome((), "exit code 1", 2.0)]
        for one, outcome in zip(left, outcomes):
            ran.append(one.name)
            tell(one, outcome)
        return outcomes

    found = going_on(tasks, "cuda", journal, lambda one, outcome: told.append(one.name), run)
    assert ran == ["0", "2", "3"] and told == ["1", "0", "2", "3"]
    assert [outcome.verdict for outcome in found] == ["done", "done", "not run: 3 s were left", "exit code 1"]
    again = opened(tmp_path)
    assert [again.known(one, "cuda") is not None for one in tasks] == [True, True, False, False]


def test_after_one_that_hangs_the_others_like_it_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Child:
        def __init__(self, work: dict[str, object], device: str) -> None:
            self.number = work["number"]

        def work(self, limit: float) -> Outcome:
            started.append(self.number)
            return DONE if self.number == 0 else Outcome((), "no answer within 60 s, stopped", 60.0)

    monkeypatch.setattr(process, "Child", Child)
    tasks = [task(str(number), number=number) for number in range(4)]
    found = run_until_one_hangs(tasks, "cuda", Deadline.after(10.0), lambda *_: None)
    assert started == [0, 1]
    assert [outcome.verdict[:7] for outcome in found] == ["done", "no answ", "not run", "not run"]
    # One that is stopped because the time is over did not hang.
    (late,) = run_at_once(tasks[1:2], "cuda", Deadline.after(0.15), 1, lambda *_: None)
    assert late.verdict == OUT_OF_TIME


def test_rows_are_told_in_a_line_each() -> None:
    assert ROW.brief() == "attend (pointer, S, density 0.25): 1.500 ms"
    assert Row("dense", "cuDNN", "failed", note="out of memory").brief() == "cuDNN: failed, out of memory"


def test_every_selection_of_the_bench_has_files_of_its_own() -> None:
    def name(*words: str) -> str:
        return bench._part(bench.parser().parse_args(list(words)))

    asked = [(), ("--quick",), ("--variants", "hopper"), ("--variants", "pointer"), ("--peers",)]
    asked += [("--shapes", "Wan 14B 720p"), ("--shapes", "Wan 14B 480p"), ("--quick", "--peers", "FlexAttention")]
    assert len({name(*words) for words in asked}) == len(asked) and name() == ""


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [("3.6.0", "2.3.5", True), ("3.6.0", "2.5.2", False), ("3.7.1", "2.5.2", True), (None, "2.5.2", False)],
)
def test_nothing_is_interpreted_where_the_interpreter_fails(
    triton: str | None, numpy: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"triton": triton, "numpy": numpy}
    monkeypatch.setattr(interpreter, "_version", versions.get)
    assert (interpreter.interpreter_lacks() is None) == works
