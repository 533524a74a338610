"""The demo's command line: bad input is one sentence and exit code 2, before any work; a tiny run leaves every file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from demo import __main__ as demo
from demo.checkpoint import CHECKPOINT


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
    assert list(methods) == ["dense", "paper", "ours"]
    assert methods["dense"]["executed_density"] == 1.0 and methods["dense"]["calls_sparse"] == 0
    layers, steps = 5, 2
    for name in ("paper", "ours"):
        row = methods[name]
        # One of two steps lies in the dense start; every call is counted once.
        assert row["calls_sparse"] == layers and row["calls_dense"] == {"schedule": layers}
        assert row["calls_sparse"] + sum(row["calls_dense"].values()) == layers * steps
        assert row["executed_density"] == pytest.approx((1 + row["sparse_density"]) / 2)
        assert 5 < row["psnr_db"] < 80
    assert "paper" in capsys.readouterr().out
