"""The demo's command line: bad input is one sentence and exit code 2, before any work; a tiny run leaves every file."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path

import pytest

from demo import __main__ as demo
from demo.checkpoint import CHECKPOINT
from demo.methods import settings
from demo.result import promise
from demo.with_comfyui import workflow
from demo.work import work


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--density", "3"], "--density"),
        (["--density", "-0.1"], "--density"),
        (["--steps", "0"], "--steps"),
        (["--grid", "0", "4", "4"], "--grid"),
        (["--host", "blender"], "--host"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert said in output.err and output.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert demo.main(["--out", str(file)]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_a_missing_comfyui_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_comfyui", lambda: None)
    assert demo.main(["--host", "comfyui", "--out", str(tmp_path)]) == 2
    assert "COMFYUI_PATH" in capsys.readouterr().err


def test_a_wrong_comfyui_path_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "COMFYUI_PATH", str(tmp_path))
    assert demo.main(["--host", "comfyui", "--out", str(tmp_path)]) == 2
    assert "not a ComfyUI folder" in capsys.readouterr().err


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="demo/tiny_wan.safetensors is missing")
def test_a_small_run_writes_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--grid", "3", "8", "16", "--steps", "2", "--out", str(tmp_path)]) == 0
    for name in ("side_by_side.mp4", "side_by_side.png", "contact_sheet.png", "density_map.png"):
        assert (tmp_path / name).stat().st_size > 1000
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == 1 and report["host"] == "diffusers" and report["tokens"] == 384
    methods = report["methods"]
    assert list(methods) == ["dense", "paper", "ours", "composed"]
    assert methods["dense"]["executed_density"] == 1.0 and methods["dense"]["calls_sparse"] == 0
    layers, steps = 5, 2
    for name in ("paper", "ours", "composed"):
        row = methods[name]
        # One of two steps lies in the dense start; every call is counted once.
        assert row["calls_sparse"] == layers and row["calls_dense"] == {"schedule": layers}
        assert row["calls_sparse"] + sum(row["calls_dense"].values()) == layers * steps
        assert row["executed_density"] == pytest.approx((1 + row["sparse_density"]) / 2)
        assert 5 < row["psnr_db"] < 80
    assert methods["composed"]["work"] <= 1.001 * methods["ours"]["work"], "no step was skipped to pay for more"
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line and not line.startswith("wrote")]
    assert any(line.startswith("paper") for line in said)
    assert said[-1] == promise(report)


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="demo/tiny_wan.safetensors is missing")
def test_the_composed_run_skips_steps_and_costs_no_more_than_ours(tmp_path: Path) -> None:
    assert demo.main(["--grid", "3", "8", "16", "--steps", "16", "--out", str(tmp_path)]) == 0
    methods = json.loads((tmp_path / "report.json").read_text())["methods"]
    computed = {name: row["evaluations_computed"] for name, row in methods.items()}
    assert computed["dense"] == computed["paper"] == computed["ours"] == 16 and 3 < computed["composed"] < 16
    assert methods["composed"]["work"] < methods["ours"]["work"] < methods["dense"]["work"] == 1.0


def test_the_promise_says_how_many_times_faster_and_how_close() -> None:
    rows = {
        "dense": {"total_seconds": 60.0},
        "composed": {"total_seconds": 20.0, "work": 0.25, "psnr_db": 35.04, "ssim": 0.98765},
    }
    said = promise({"methods": rows})
    for figure in ("3.0x as fast as dense", "20.0 s for 60.0 s", "0.25 of its work", "35.0 dB", "SSIM 0.988"):
        assert figure in said


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="demo/tiny_wan.safetensors is missing")
def test_a_video_that_is_the_dense_one_is_called_identical_and_the_report_is_strict_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--grid", "3", "8", "16", "--steps", "1", "--density", "1", "--out", str(tmp_path)]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    rows = [report["methods"][name] for name in ("paper", "ours", "composed")]
    assert [(row["psnr_db"], row["ssim"]) for row in rows] == [(None, 1.0)] * 3
    lines = capsys.readouterr().out.splitlines()
    said = {line.split()[0]: line for line in lines if line[:1].isalpha()}
    assert ["identical" in said[name] for name in ("dense", "paper", "ours", "composed")] == [False] + [True] * 3
    assert promise(report) in lines and promise(report).endswith("identical to its video")


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 6, 7, 8, 16, 20])
def test_composed_costs_no_more_than_ours_at_any_number_of_steps(steps: int) -> None:
    def spent(method: str, density: float, share: float) -> float:
        chosen = settings(method, density, steps)
        skips = chosen.skip.rule == "spread"
        computed = sorted(chosen.skip.planned_steps(steps)) if skips else list(range(steps))
        densities = [chosen.schedule.curve(step / steps) for step in computed]
        evaluations = {"computed": len(computed), "forecast": steps - len(computed)}
        return work({"evaluations": evaluations, "work_density": sum(densities) / len(densities)}, share)

    for density, share in product((0.05, 0.1, 0.25, 0.5, 0.9, 1.0), (0.0, 0.5, 0.849, 1.0)):
        assert spent("composed", density, share) <= spent("ours", density, share) + 1e-9, (density, share)
    raised = settings("composed", 0.25, steps).schedule.curve(0.9)
    assert raised == (pytest.approx(0.4) if steps > 5 else 0.25), "the raise is taken wherever it is paid for"


def test_work_counts_skipped_steps_at_nothing_and_the_rest_of_the_model_at_its_share() -> None:
    report = {"evaluations": {"computed": 5, "forecast": 15}, "work_density": 0.4}
    assert work(report, share=0.8) == pytest.approx(5 / 20 * (0.2 + 0.8 * 0.4))


class TestComfyUIWorkflow:
    def test_the_composed_run_has_a_skip_steps_node_between_apply_and_the_sampler(self) -> None:
        arguments = demo.parse(["--steps", "20"])
        prompt, _, report = workflow("composed", arguments)
        apply = next(name for name, node in prompt.items() if node["class_type"] == "ApplyDraftAttention")
        followers = [name for name, node in prompt.items() if node["inputs"].get("model") == [apply, 0]]
        assert followers == ["skip"] and prompt["skip"]["class_type"] == "DraftAttentionSkipSteps"
        assert any(node["inputs"].get("model") == ["skip", 0] for node in prompt.values())
        assert prompt[report]["inputs"]["report"] == [apply, 1]

    def test_both_hosts_are_given_the_same_settings(self) -> None:
        prompt, _, _ = workflow("composed", demo.parse(["--steps", "20"]))
        wanted, given = settings("composed", 0.25, 20), prompt["skip"]["inputs"]
        assert given["rule"] == wanted.skip.rule and given["share"] == wanted.skip.share
        assert given["first_steps"] == wanted.skip.first_of(20) and given["max_in_a_row"] == wanted.skip.max_skips
        apply = next(node for node in prompt.values() if node["class_type"] == "ApplyDraftAttention")
        assert apply["inputs"]["budgets"] == wanted.budgets

    def test_the_other_runs_skip_nothing(self) -> None:
        for method in ("dense", "paper", "ours"):
            prompt, _, _ = workflow(method, demo.parse([]))
            assert "skip" not in prompt
            assert settings(method, 0.25, 20).skip.rule == "off"
