"""Verdicts of the kernel bench: no speed beside a wrong result, and a target is met only by all of its cells."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kernels import __main__ as bench
from benchmarks.kernels.plan import (
    DENSITIES,
    FIRST_SHAPES,
    QUICK,
    SHAPES,
)
from benchmarks.kernels.process import Outcome, Task
from benchmarks.kernels.report import result_file
from benchmarks.kernels.row import ATTEND, ATTEND_TAIL, PREPARE, PREPARE_BARE, SELECT, WHOLE, Row
from benchmarks.kernels.variants import VARIANTS
from benchmarks.kernels.verdicts import Verdict, verdicts

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


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
    page = (tmp_path / "kernels-dry-run-quick.md").read_text()
    assert "Red: no speed is told" in page and "off by 1.0e+00" in page
    found = json.loads((tmp_path / "kernels-dry-run-quick.json").read_text())
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


def test_a_variant_that_was_asked_for_by_name_counts() -> None:
    def said(*rows: Row) -> list[str]:
        return bench.unproven(rows, ["hopper"])

    assert said(check_row("unmeasured", "hopper")) == []
    assert said(check_row("unmeasured", "hopper"), check_row("failed", "hopper", "it raised")) == ["hopper"]
    assert said(check_row("unmeasured", "pointer")) == ["hopper"]
    assert said(check_row("skipped", "hopper", "this is sm_80")) == ["hopper"]


@needs_triton
def test_results_are_on_disk_after_every_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fine(tasks: list[Task], *_: object) -> list[Outcome]:
        return [Outcome((check_row("unmeasured"),), "done", 1.0) for _ in tasks]

    def taken_away(tasks: list[Task], device: str, deadline: object, told: Callable[[Task, Outcome], None]) -> None:
        told(tasks[0], Outcome((Row("dense", "measured first", "unmeasured"),), "done", 1.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_at_once", fine)
    monkeypatch.setattr(bench, "run_in_turn", taken_away)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--dry-run", "--quick", "--variants", "pointer", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "kernels-dry-run-quick-part-pointer.json").read_text())
    assert [row["what"] for row in found["rows"]].count("measured first") == 1


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
        timed("ours", ATTEND_TAIL, density * attend + tail * (1 - density), **where),
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
    assert "worst 1.10 x" in found[0].said and "worst 2.5 %" in found[1].said
    # At 720p and density 0.1 the products of the tail are 2.8 to 2.9 % of the dense call's, which took a second.
    assert found[2].said.startswith("worst 0.63 x")
    # 400 bytes beside the inputs, 100 of them the output, K + V are 200.
    assert "1.50 x K + V" in found[3].said and "over the limit by 0.50" in found[3].said


def test_a_missed_target_says_where_and_by_how_much() -> None:
    found = words(all_cells(attend=1.4, tail=0.05))
    assert found[0].word == "missed" and "over the limit by 0.25 x" in found[0].said
    assert found[2].word == "missed" and "over the limit by 0.43 x" in found[2].said


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
    right = replace(failed, status="right", note="")
    assert words([right, right])[6].said == "2 calls replayed bit for bit"
    assert words([replace(failed, status="unmeasured", note="no GPU")])[6] == Verdict(verdict.target, None, "no GPU")


def test_a_part_or_a_dry_run_takes_no_whole_run_s_file(tmp_path: Path) -> None:
    h100 = {"device": "NVIDIA H100 80GB HBM3"}
    assert result_file(tmp_path, "kernels", h100, True) == tmp_path / "kernels-h100"
    part = result_file(tmp_path, "kernels", h100, True, part="part hopper no peers")
    assert part == tmp_path / "kernels-h100-part-hopper-no-peers"
    assert result_file(tmp_path, "kernels", {"device": "none"}, False) == tmp_path / "kernels-dry-run"
