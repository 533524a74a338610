"""`bench gpu` on a pretend GPU: order, time limits, what forbids what, going on, the table it leaves and its story."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as bench
from benchmarks.gpu.stage_a import CHECKS, HEALTH, HOPPER, MEMORY, PROFILE
from benchmarks.gpu.story import LINES
from benchmarks.gpu.sweep import base, best, candidates, combined, words
from benchmarks.gpu.tools import profiled
from benchmarks.kernels import journal
from draftattention.kernels.configs import ATTEND, AttendConfig
from draftattention.kernels.tuning import ALLOWED, read_table
from tests.benchmarks.pretend_gpu import PretendGpu, Work, cost, pretend

START = base("sm_90", 128)


def run(folder: Path, minutes: float = 30.0, *stages: str) -> int:
    chosen = [word for stage in stages for word in ("--stage", stage)]
    places = ["--out", str(folder), "--tables", str(folder / "tables")]
    return bench.main(["--minutes", str(minutes), *chosen, *places])


def steps(folder: Path) -> dict[str, tuple[str, str]]:
    found = json.loads((folder / "gpu-h200.json").read_text())
    return {step["name"]: (step["word"], step["said"]) for step in found["steps"]}


def story(folder: Path) -> list[str]:
    lines: list[str] = json.loads((folder / "gpu-h200.json").read_text())["story"]
    return lines


def of_hopper(work: Work) -> bool:
    return work.get("variant") in HOPPER


def test_everything_in_the_order_of_its_worth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = pretend(monkeypatch, PretendGpu())
    assert run(tmp_path) == 0
    sweeps = [f"sweep, head size {dim}" for dim in (128, 64)]
    wanted = [HEALTH, CHECKS, MEMORY, *sweeps, PROFILE, *HOPPER.values(), bench.KERNELS, bench.END_TO_END]
    assert list(steps(tmp_path)) == wanted
    assert {word for word, _ in steps(tmp_path).values()} == {"right", "done"}
    # Nothing comes after the kernels that may hang, in their stage.
    first = next(index for index, work in enumerate(gpu.started) if of_hopper(work))
    assert all(map(of_hopper, gpu.started[first:])) and gpu.started[0] == {"kind": "health"}
    checker = next(under for under in gpu.under if under)
    assert "/tools/compute-sanitizer" in checker and "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in checker
    assert gpu.benches["kernels"][:5] == ["--quick", "--variants", "pointer", "hopper", "gluon"]


def test_every_configuration_is_compared_before_it_is_timed_and_a_wrong_one_never_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The fastest change of all is wrong.
    bad = replace(START, stages=START.stages + 2)
    wrong = PretendGpu(wrong=lambda work: work.get("config") == asdict(bad) and work["dim"] == 128)
    gpu = pretend(monkeypatch, wrong)
    run(tmp_path, 30.0, "a")
    right: list[dict[str, int]] = []
    for work in gpu.started:
        if work.get("dim") == 64:
            break
        if work["kind"] == "candidate":
            right.append(work["config"])
        if work["kind"] == "sweep":
            assert all(config in right and config != asdict(bad) for config in work["configs"])
    table = read_table("sm_90", tmp_path / "tables")
    found = replace(START, stages=START.stages + 1, warps=4)
    assert table is not None and AttendConfig(**table.attend[128]) == found
    assert table.gain[128] == pytest.approx(cost(START) / cost(found), abs=1e-3)
    assert (table.device, table.triton) == ("NVIDIA H200", "3.6.0") and set(table.attend) == {64, 128}
    said = steps(tmp_path)["sweep, head size 128"][1]
    tried = len(candidates(START))
    assert said.startswith(f"{tried - 1} of {tried} configurations right; {words(found)}: ")


def test_no_table_where_the_fixed_row_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, PretendGpu())
    monkeypatch.setattr("tests.benchmarks.pretend_gpu.cost", lambda config: 0.05)
    assert run(tmp_path, 30.0, "a") == 0
    assert read_table("sm_90", tmp_path / "tables") is None
    assert "holds: 50.00 ms, no table" in steps(tmp_path)["sweep, head size 128"][1]


@pytest.mark.parametrize("minutes", [1.0, 4.0, 9.0, 25.0])
def test_it_stops_in_time_when_nothing_answers(minutes: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = pretend(monkeypatch, PretendGpu(hangs=lambda work: work["kind"] != "health"))
    run(tmp_path, minutes)
    assert gpu.now <= 60.0 * minutes
    assert len(story(tmp_path)) == LINES


@pytest.mark.parametrize("seconds", [5.0, 30.0])
def test_it_stops_in_time_when_all_goes_well_but_slowly(
    seconds: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = pretend(monkeypatch, PretendGpu(seconds=seconds))
    assert run(tmp_path, 6.0) == 0
    assert gpu.now <= 360.0
    assert steps(tmp_path)[bench.END_TO_END][0] == "done"


def test_a_stage_gets_what_those_before_it_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = pretend(monkeypatch, PretendGpu(seconds=0.0))
    run(tmp_path, 25.0)
    minutes = {kind: float(words[words.index("--minutes") + 1]) for kind, words in gpu.benches.items()}
    assert minutes["kernels"] == pytest.approx(12.5, abs=0.2) and minutes["e2e"] == pytest.approx(12.5, abs=0.2)


def test_wrong_kernels_forbid_every_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = PretendGpu(wrong=lambda work: work.get("variant") == "pointer" and work["dim"] == 64)
    gpu = pretend(monkeypatch, wrong)
    assert run(tmp_path) == 1
    assert not gpu.benches and "sweep" not in gpu.kinds() and "candidate" not in gpu.kinds()
    # What a memory checker says of them helps to mend them.
    assert MEMORY in steps(tmp_path) and steps(tmp_path)[CHECKS][0] == "wrong"
    assert story(tmp_path)[-1].startswith("Next: mend what is wrong first")


def test_a_kernel_for_hopper_that_hangs_costs_one_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = pretend(monkeypatch, PretendGpu(hangs=lambda work: work.get("variant") == "hopper"))
    assert run(tmp_path, 60.0) == 1
    assert sum(work.get("variant") == "hopper" for work in gpu.started) == 1
    assert "no answer within 60 s" in steps(tmp_path)[HOPPER["hopper"]][1]
    # The other one is checked, and timed, all the same.
    assert steps(tmp_path)[HOPPER["gluon"]][0] == "right"
    assert gpu.benches["kernels"][:4] == ["--quick", "--variants", "pointer", "gluon"]
    assert "e2e" in gpu.benches


def test_called_again_it_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = pretend(monkeypatch, PretendGpu())
    run(tmp_path, 30.0, "a")
    before = (tmp_path / "tables" / "sm_90.json").read_bytes()
    gpu.started.clear()
    assert run(tmp_path, 20.0, "b") == 0 and not gpu.started
    # It knows from the first call that the opt-in kernel is right.
    assert "hopper" in gpu.benches["kernels"]
    assert run(tmp_path, 30.0) == 0 and not gpu.started
    assert (tmp_path / "tables" / "sm_90.json").read_bytes() == before


def test_what_was_cut_off_is_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = pretend(monkeypatch, PretendGpu(seconds=20.0))
    run(tmp_path, 6.0, "a")
    assert [steps(tmp_path)[f"sweep, head size {dim}"][0] for dim in (128, 64)] == ["not run", "not run"]
    assert story(tmp_path)[-1].startswith("Next: call it again")
    done = [work for work in gpu.started if work["kind"] == "check" and not of_hopper(work)]
    gpu.started.clear()
    assert run(tmp_path, 60.0, "a") == 0
    assert all(work not in done for work in gpu.started)
    assert steps(tmp_path)["sweep, head size 64"][0] == "done"


def test_results_of_other_sources_stay_and_are_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = pretend(monkeypatch, PretendGpu())
    run(tmp_path, 30.0, "a")
    before = (tmp_path / "gpu-h200.json").read_bytes()
    gpu.started.clear()
    monkeypatch.setattr(bench, "sources_digest", lambda **_: "another")
    run(tmp_path, 30.0, "a")
    assert gpu.started and (tmp_path / "gpu-h200.json").read_bytes() == before
    assert (tmp_path / "gpu-h200-2.json").is_file()


def test_the_story_is_ten_lines_with_the_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, PretendGpu())
    run(tmp_path)
    lines = story(tmp_path)
    assert len(lines) == LINES and all("\n" not in line for line in lines)
    assert lines[0].startswith("Device: NVIDIA H200 (driver 580.1, torch 2.11.0+cu130, triton 3.6.0)")
    assert "8 checks, at most 1.0e-03 off" in lines[2]
    assert "Wan 14B 720p 1.25 x density x dense" in lines[6]
    assert "FlexAttention 128/64 2.00 x ours" in lines[7]
    assert "Wan 14B 720p 1.60 x (missed)" in lines[8]
    page = (tmp_path / "gpu-h200.md").read_text()
    assert all(f"{number}. {line}" in page for number, line in enumerate(lines, 1))


def test_the_configuration_that_was_found_is_profiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = pretend(monkeypatch, PretendGpu())
    run(tmp_path, 30.0, "a")
    found = read_table("sm_90", tmp_path / "tables")
    (work,) = (work for work, under in zip(gpu.started, gpu.under) if "/tools/ncu" in under)
    # At full size: of a check, which launches twice, none would be left to profile.
    assert work["kind"] == "sweep" and found is not None and work["configs"] == [found.attend[128]]


def test_an_error_of_the_bench_itself_costs_its_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = pretend(monkeypatch, PretendGpu())

    def broken(*_: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr("benchmarks.gpu.stage_a.candidates", broken)
    assert run(tmp_path) == 1
    assert steps(tmp_path)["stage a"] == ("wrong", "KeyError: 'planted'") and set(gpu.benches) == {"kernels", "e2e"}


def test_a_bench_that_raises_is_a_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = pretend(monkeypatch, PretendGpu())

    def raises(arguments: list[str]) -> int:
        raise SystemExit(2)

    monkeypatch.setattr(bench.kernels, "main", raises)
    assert run(tmp_path) == 1
    assert steps(tmp_path)[bench.KERNELS] == ("wrong", "SystemExit: 2") and "e2e" in gpu.benches


@pytest.mark.parametrize(("architecture", "dim"), list(ATTEND))
def test_candidates_begin_with_the_fixed_row_and_stay_within_bounds(architecture: str, dim: int) -> None:
    found = candidates(base(architecture, dim))
    assert found[0] == base(architecture, dim) and len(set(found)) == len(found) and 8 <= len(found) <= 14
    for config in found:
        assert all(value in ALLOWED[name] for name, value in asdict(config).items())


def test_the_best_change_of_each_number_is_put_together() -> None:
    fewer, more = replace(START, warps=4), replace(START, stages=START.stages + 1)
    narrow, most = replace(START, block_g=32), replace(START, stages=START.stages + 2)
    seconds = {START: 1.0, fewer: 0.9, more: 0.95, most: 0.8, narrow: 1.2}
    assert combined(START, seconds) == replace(START, warps=4, stages=START.stages + 2)
    assert best(START, seconds) == (most, pytest.approx(1.25))
    assert best(START, {START: 1.0, more: 0.99}) is None
    # Without the fixed row beside them there is nothing to compare with.
    assert best(START, {more: 0.5}) is None and combined(START, {more: 0.5}) == START


def test_a_profile_that_is_not_permitted_says_so() -> None:
    assert profiled(("==ERROR== ERR_NVGPUCTRPERM - no permission",)) == "not permitted to read counters here"
    assert profiled(("  Compute (SM) Throughput  %  54.1",)) == "1 figures in the results"


def test_a_fingerprint_sees_sources_and_tables(tmp_path: Path) -> None:
    (tmp_path / "kernels" / "tuned").mkdir(parents=True)
    (tmp_path / "kernels" / "a.py").write_text("1")
    plain, whole = journal.sources_digest(tmp_path, tables=False), journal.sources_digest(tmp_path)
    (tmp_path / "kernels" / "tuned" / "sm_90.json").write_text("{}")
    assert journal.sources_digest(tmp_path, tables=False) == plain and journal.sources_digest(tmp_path) != whole
    (tmp_path / "kernels" / "a.py").write_text("2")
    assert journal.sources_digest(tmp_path, tables=False) != plain
