"""The kernel bench without a GPU: its children, its command, its verdicts and its page."""

from __future__ import annotations

import importlib.util
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kernels import __main__ as bench
from benchmarks.kernels.peers import PEERS
from benchmarks.kernels.plan import (
    DENSITIES,
    FIRST_SHAPES,
    QUICK,
    SHAPES,
    TINY,
    Effort,
    Job,
    dense_job,
    ours_job,
    peer_job,
)
from benchmarks.kernels.process import GRACE, Child, Deadline, Outcome, Task, run_at_once, run_in_turn
from benchmarks.kernels.report import markdown, result_file, short_name, write_files
from benchmarks.kernels.row import ATTEND, ATTEND_TAIL, PREPARE, PREPARE_BARE, SELECT, WHOLE, Row, row_of
from benchmarks.kernels.variants import VARIANTS, Variant
from benchmarks.kernels.verdicts import Verdict, verdicts

VIDEO = replace(TINY[0], heads=1)
EFFORT = Effort(0.0, 1, 1, 1.0, everywhere=True)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def fake(name: str) -> str:
    return f"tests.fake_kernel_peers:{name}"


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
    plain = outcome.to_dict("a job")
    assert plain["said"] == ["first words", "  last words"] and plain["verdict"] == "exit code 7: last words"
    assert "said" not in replace(outcome, verdict="done").to_dict("a job")


def test_a_child_that_fails_says_why() -> None:
    outcome = Child({"kind": "nothing"}, "cpu").work(300.0)
    assert outcome.verdict == "exit code 1: ValueError: no job of kind 'nothing'" and not outcome.ok


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


def names_of(options: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs of the command, in order, where every peer is installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    found: list[Job] = []

    def described(checks: int, limit: float, at_once: int, jobs: list[Job], effort: Effort) -> str:
        found.extend(jobs)
        return f"{checks} checks"

    monkeypatch.setattr(bench, "describe", described)
    assert bench.main(["--plan", *options]) == 0
    return [job.name for job in found]


def test_what_the_targets_compare_comes_before_the_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = names_of(["--quick"], monkeypatch)
    assert found == [
        "ceilings and dense attention",
        "dense attention by flash-attn-4 on 5 shapes",
        "dense attention by FlashAttention-3 on 5 shapes",
        "ours, pointer, Wan 14B 720p",
        "ours, pointer, HunyuanVideo 1.5 720p",
        "ours, hopper, Wan 14B 720p",
        "ours, hopper, HunyuanVideo 1.5 720p",
        "peer, comfy_kitchen on 2 shapes",
        "peer, FlexAttention on 2 shapes",
        "ours, pointer, HunyuanVideo 720p",
        "ours, pointer, Wan 14B 480p",
        "ours, pointer, head size 64",
        "peer, flash-attn-4, Wan 14B 720p",
        "peer, cuDNN frontend, Wan 14B 720p",
        "peer, MIT Block-Sparse-Attention, Wan 14B 720p",
        "peer, FlashInfer, Wan 14B 720p",
    ]
    everything = names_of([], monkeypatch)
    assert "peer, FlexAttention on 3 shapes" in everything and "ours, hopper, head size 64" in everything


def test_a_second_run_need_not_repeat_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--variants", "hopper", "--shapes", "Wan 14B 480p", "HunyuanVideo 1.5 720p", "--peers"]
    assert names_of(options, monkeypatch) == ["ceilings and dense attention", "ours, hopper, HunyuanVideo 1.5 720p"]
    # Those of the one variant: eight checks, two graphs.
    assert capsys.readouterr().out.startswith("10 checks")
    with pytest.raises(SystemExit):
        bench.main(["--plan", "--shapes", "tiny video"])
    assert "none of the shapes tiny video is one of this run's" in capsys.readouterr().err


def test_results_are_named_by_the_device(tmp_path: Path) -> None:
    devices = ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-80GB", "unknown")
    assert [short_name(device) for device in devices] == ["h100", "h200", "rtx-4090", "a100-sxm4", "unknown"]
    h100 = {"device": devices[0]}
    assert result_file(tmp_path, "kernels", h100, True) == tmp_path / "kernels-h100"
    assert result_file(tmp_path, "kernels", h100, True, part=True) == tmp_path / "kernels-h100-part"
    assert result_file(tmp_path, "kernels", {"device": "none"}, False) == tmp_path / "kernels-dry-run"
    assert result_file(tmp_path / "x.json", "kernels", h100, True, part=True) == tmp_path / "x"


def test_results_are_json_also_where_something_was_infinitely_wrong(tmp_path: Path) -> None:
    row = Row("peer", "x", "wrong", "S", off=float("inf"), error=float("nan"), note="not finite")
    assert row_of(row.line()).off == float("inf")  # type: ignore[union-attr]
    results = bench.collect(
        {"device": "x"}, True, [], [row], [], [("a check", Outcome((), "exit code 1", 2.0, ("a",)))]
    )
    write_files(tmp_path / "results", results.to_dict(), "")

    def no_json(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=no_json)
    assert (found["rows"][0]["off"], found["rows"][0]["error"]) == ("inf", "nan")
    assert found["checks"] == [{"name": "a check", "verdict": "exit code 1", "seconds": 2.0, "said": ["a"]}]


def test_the_plan_is_printed_without_running_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--plan", "--quick"]) == 0
    said = capsys.readouterr().out
    assert "Stops after 8.5 minutes" in said and "HunyuanVideo 1.5 720p" in said


def check_row(status: str, by: str = "pointer", note: str = "") -> Row:
    return Row("check", "a check", status, by=by, off=1e-3, seconds=1.0, note=note)  # type: ignore[arg-type]


@needs_triton
def test_no_speed_is_told_while_a_check_is_red(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def all_wrong(tasks: list[Task], *_: object) -> list[Outcome]:
        return [Outcome((check_row("wrong", note="attend is off by 1.0e+00"),), "done", 1.0) for _ in tasks]

    def never(*_: object) -> list[Outcome]:
        raise AssertionError("something was timed")

    monkeypatch.setattr(bench, "run_at_once", all_wrong)
    monkeypatch.setattr(bench, "run_in_turn", never)
    assert bench.main(["--dry-run", "--quick", "--out", str(tmp_path)]) == 1
    page = (tmp_path / "kernels-dry-run.md").read_text()
    assert "Red: no speed is told" in page and "off by 1.0e+00" in page
    found = json.loads((tmp_path / "kernels-dry-run.json").read_text())
    assert found["rows"] and all(row["status"] != "timed" for row in found["rows"])


def test_a_check_that_never_answered_is_red() -> None:
    task = Task("pointer, head size 64", {"variant": "pointer"}, 60.0)
    rows = bench._checked([task], [Outcome((), "no answer within 90 s, stopped", 90.0)])
    assert bench.judge(rows) == (["pointer, head size 64: no answer within 90 s, stopped"], set())
    task = Task("a graph", {"kind": "graph", "variant": "pointer"}, 60.0)
    rows = bench._checked([task], [Outcome((), "killed by signal 11", 9.0)])
    assert rows[0].kind == "graph" and bench.judge(rows) == ([], set())


def test_a_variant_that_is_opt_in_loses_only_its_own_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "other", replace(VARIANTS["pointer"], name="other", required=False))
    assert bench.judge([check_row("unmeasured"), check_row("failed", "other")]) == ([], {"other"})
    wanted, _ = bench.jobs(QUICK, {}, True)
    assert sum(job.work.get("variant") == "other" for job in wanted) == len(FIRST_SHAPES)


def test_speeds_are_withheld_where_a_kernel_was_wrong_at_full_size() -> None:
    good = Row("ours", WHOLE, "timed", "S", "pointer", 0.5, seconds=1.0)
    bad = Row("ours", ATTEND, "wrong", "S", "pointer", 0.25, note="off by 2.0e-01")
    other = Row("dense", "cuDNN", "timed", "S", seconds=1.0)
    results = bench.collect({"device": "x"}, True, [], [], [("job", Outcome((good, bad, other), "done", 1.0))])
    assert results.red == ("attend, S, density 0.25: off by 2.0e-01",)
    by_what = {row.what: row for row in results.rows}
    assert by_what[WHOLE].seconds is None and "withheld" in by_what[WHOLE].note
    assert by_what["cuDNN"].seconds == 1.0


def timed(kind: str, what: str, seconds: float, density: float = 0.25, by: str = "", **more: float) -> Row:
    shape = more.pop("shape", "Wan 14B 720p")
    executed = more.pop("executed", density)
    return Row(kind, what, "timed", shape, by, density, executed, seconds, 0.0, 1e12, **more)  # type: ignore[arg-type]


def a_cell(shape: str, density: float, attend: float = 1.1, tail: float = 0.02) -> list[Row]:
    """Rows of one shape and density beside a dense call of one second."""
    where = {"shape": shape, "density": density, "by": "pointer"}
    return [
        timed("ours", WHOLE, density * attend + 0.05, **where, extra_bytes=400.0, io_bytes=100.0, error=0.05),
        timed("ours", ATTEND, density * attend, **where),
        timed("ours", ATTEND_TAIL, density * attend + tail, **where),
        timed("ours", PREPARE, 0.02, **where),
        timed("ours", PREPARE_BARE, 0.015, **where),
        timed("ours", SELECT, 0.005, **where),
    ]


def all_cells(**options: float) -> list[Row]:
    rows = [row for shape in SHAPES[:3] for density in DENSITIES for row in a_cell(shape.name, density, **options)]
    dense = [timed("dense", name, s, 1.0, shape=shape.name) for shape in SHAPES for name, s in (("a", 1.0), ("b", 2.0))]
    return rows + dense


def words(rows: list[Row], device: str = "NVIDIA H200") -> list[Verdict]:
    return verdicts(rows, device, "pointer")


def test_verdicts_of_a_run_that_meets_its_targets() -> None:
    found = words(all_cells())
    assert [verdict.word for verdict in found] == [
        "met",
        "met",
        "met",
        "missed",
        "unmeasured",
        "unmeasured",
        "unmeasured",
    ]
    assert "worst 1.10 x" in found[0].said and "worst 2.5 %" in found[1].said and "2.5 points" in found[2].said
    # 400 bytes beside the inputs, 100 of them the output, K + V are 200.
    assert "1.50 x K + V" in found[3].said and "over the limit by 0.50" in found[3].said


def test_a_missed_target_says_where_and_by_how_much() -> None:
    found = words(all_cells(attend=1.4, tail=0.05))
    assert found[0].word == "missed" and "over the limit by 0.25 x" in found[0].said
    assert found[2].word == "missed" and "over the limit by 2.5 points" in found[2].said


def test_what_was_timed_in_part_or_elsewhere_is_not_called_met() -> None:
    some = [row for row in all_cells() if row.kind == "dense" or row.density == 0.5]
    assert words(some)[0].word == "unmeasured" and "3 of 9 cells" in words(some)[0].said
    assert "the target is for an H200" in words(all_cells(), "NVIDIA L4")[0].said
    assert [verdict.word for verdict in words([])] == ["unmeasured"] * 7


def test_a_peer_is_beaten_only_when_slower_and_no_better() -> None:
    sol = timed("peer", "comfy_kitchen.sol_attn", 0.5, error=0.1)
    flex = timed("peer", "FlexAttention", 0.2, by="128/64")
    found = words([*all_cells(), sol, flex])
    assert [verdict.word for verdict in found[4:6]] == ["missed", "met"]
    assert "error 0.0500 against 0.1000" in found[5].said
    better = words([*all_cells(), replace(sol, error=0.01)])
    assert better[5].word == "missed"


def test_a_peer_that_executes_another_density_is_not_compared() -> None:
    """Slower because it computes more, or faster because it computes less: neither is a comparison."""
    sol = timed("peer", "comfy_kitchen.sol_attn", 0.5, error=0.1, executed=0.27)
    (found,) = words([*all_cells(), sol])[5:6]
    assert (
        found.word == "unmeasured"
        and "executed densities differ: Wan 14B 720p at 0.25 (its 0.270, ours 0.250)" in found.said
    )
    other = replace(sol, executed=0.1, density=0.1, seconds=0.01)
    (found,) = words([*all_cells(), sol, other])[5:6]
    assert found.word == "missed" and "left out, executed densities differ" in found.said
    assert words([*all_cells(), replace(sol, executed=0.254)])[5].word == "met"


def test_a_graph_that_cannot_be_captured_is_a_missed_requirement_and_withholds_nothing() -> None:
    failed = Row("graph", "whole call in a CUDA graph, x", "failed", by="pointer", note="operation not permitted")
    results = bench.collect(
        {"device": "NVIDIA H200"}, True, [], [failed], [("a", Outcome(tuple(all_cells()), "done", 1.0))]
    )
    (verdict,) = dict(results.verdicts)["pointer"][6:]
    assert not results.red and verdict.word == "missed" and "operation not permitted" in verdict.said
    assert any(row.status == "timed" for row in results.rows)
    assert "| whole call in a CUDA graph, x | failed: operation not permitted |" in markdown(results)
    right = replace(failed, status="right", note="")
    assert words([right, right])[6].said == "2 calls replayed bit for bit"
    assert words([replace(failed, status="unmeasured", note="no GPU")])[6] == Verdict(verdict.target, None, "no GPU")


def test_the_page_names_what_was_skipped_failed_and_did_not_fit() -> None:
    rows = [*all_cells(), Row("peer", "FlashInfer block-sparse", "skipped", by="128/64", note="not importable: x")]
    about = {"device": "NVIDIA H200", "driver": "1"}
    jobs = [("peer, MIT", Outcome((), "not run: 3 s were left", 0.0)), ("a", Outcome(tuple(rows), "done", 1.0))]
    page = markdown(bench.collect(about, True, [], [check_row("unmeasured")], jobs))
    assert "FlashInfer block-sparse 128/64: not importable: x" in page
    assert "peer, MIT: not run: 3 s were left" in page
    assert "| attend | pointer | 0.25 | 0.250 | 275.000 | 0% | 1.10 | 4 |" in page
    assert "worked out: 20.000 in attend, 5.000 in prepare" in page


def test_rows_survive_the_pipe_and_chatter_does_not() -> None:
    row = Row("ours", WHOLE, "timed", "S", seconds=1.0, note="a | b")
    assert row_of(row.line()) == row
    assert row_of("a warning") is None and row_of(row.line()[:-4]) is None


def test_a_new_variant_is_one_entry() -> None:
    assert isinstance(VARIANTS["pointer"], Variant) and VARIANTS["pointer"].required
    assert ours_job(SHAPES[0], "pointer", QUICK).work["variant"] in VARIANTS
