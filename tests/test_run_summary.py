"""The test command: what its summary counts, and its exit codes for bad input."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import run as test_command
from tests.browser.parts import ABSENT, PINNED, FrontEnd
from tools.comfyui.path import ComfyUIInstall

REPORT = """<testsuites><testsuite>
<testcase name="a"/>
<testcase name="b"><failure message="assert 1 == 2"/></testcase>
<testcase name="c"><error message="in a fixture"/></testcase>
<testcase name="d"><skipped type="pytest.skip" message="no GPU"/></testcase>
<testcase name="e"><skipped type="pytest.skip" message="no GPU"/></testcase>
<testcase name="f"><skipped type="pytest.skip" message="no ComfyUI"/></testcase>
</testsuite></testsuites>"""


def test_every_test_lands_in_one_count_and_every_skip_under_its_reason(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    stage = test_command.read_report("pytest", report)
    assert stage.counts == "1 passed, 2 failed, 3 skipped"
    assert stage.skipped == {"no GPU": 2, "no ComfyUI": 1}


def test_a_run_of_pytest_without_tests_is_a_failure(tmp_path: Path) -> None:
    stage = test_command.run_pytest("pytest", None, ["--quiet", "-p", "no:cacheprovider", str(tmp_path)])
    assert (stage.ok, stage.failed) == (False, 1)


def test_skips_are_named_before_the_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    checks = test_command.Stage("mypy", True, skipped=Counter(["mypy is not installed"]))
    tests = test_command.Stage("pytest", True, 1.0, passed=5, skipped=Counter({"no GPU": 2}))
    test_command.print_summary([checks, tests])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "5 passed, 0 failed, 3 skipped"
    assert {"    2 x no GPU", "    1 x mypy is not installed"} <= set(lines)


def test_a_comfyui_that_is_not_there_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COMFYUI_PATHS", raising=False)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        test_command.main([])
    assert ended.value.code == 2
    assert f"COMFYUI_PATH names {tmp_path}, which is not a ComfyUI folder" in capsys.readouterr().err


def hosts(tmp_path: Path, versions: list[str]) -> list[ComfyUIInstall]:
    """Folders that say which version of ComfyUI they are."""
    made = []
    for version in versions:
        folder = tmp_path / version
        folder.mkdir()
        (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
        made.append(ComfyUIInstall(folder, Path(sys.executable), "COMFYUI_PATHS"))
    return made


@pytest.mark.parametrize(
    ("host_only", "selections"), [(False, [[], ["-m", "comfyui"]]), (True, [["-m", "comfyui"]] * 2)]
)
def test_every_host_has_a_run_of_its_own_and_the_other_tests_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host_only: bool, selections: list[list[str]]
) -> None:
    runs: list[tuple[str, ComfyUIInstall | None, list[str]]] = []

    def run_pytest(name: str, host: ComfyUIInstall | None, arguments: list[str]) -> test_command.Stage:
        runs.append((name, host, arguments))
        return test_command.Stage(name, True, passed=1)

    monkeypatch.setattr(test_command, "run_pytest", run_pytest)
    monkeypatch.setattr(test_command, "workers", lambda arguments: ["-n", "2"])
    found = hosts(tmp_path, ["0.14.0", "0.33.0"])
    stages = test_command.run_pytest_per_host(found, host_only, ["-x"])
    assert len(stages) == 2 and [host for _, host, _ in runs] == found
    assert [arguments for _, _, arguments in runs] == [["-n", "2", *selection, "-x"] for selection in selections]
    assert "ComfyUI 0.14.0" in runs[0][0] and "ComfyUI 0.33.0" in runs[1][0]


@pytest.mark.parametrize(("cores", "processes"), [(2, "2"), (64, str(test_command.MOST_WORKERS)), (None, "1")])
def test_every_core_runs_a_process_of_pytest_and_a_file_stays_in_one(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, processes: str
) -> None:
    monkeypatch.setattr(test_command.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(test_command.os, "cpu_count", lambda: cores)
    assert test_command.workers(["-x"]) == ["-n", processes, "--dist", "loadfile"]


@pytest.mark.parametrize("arguments", [["-n0"], ["-n", "1"], ["--pdb"]])
def test_who_asks_for_processes_or_a_debugger_gets_no_more_of_them(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(test_command.importlib.util, "find_spec", lambda name: name)
    assert test_command.workers(arguments) == []


def test_without_xdist_pytest_runs_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_command.importlib.util, "find_spec", lambda name: None)
    assert test_command.workers([]) == []


@pytest.mark.parametrize(
    ("fronts", "arguments", "selections"),
    [
        (["pinned", "1.58.1"], ["-x"], [["-k", "[pinned-"], ["-k", "[1.58.1-"]]),
        (["pinned", "1.58.1"], ["-k", "verdict"], [[]]),
        (["pinned", "other"], ["-x"], [[]]),
    ],
    ids=["one run each", "one selection", "no second front end"],
)
def test_front_ends_that_are_there_are_tried_at_once(
    monkeypatch: pytest.MonkeyPatch, fronts: list[str], arguments: list[str], selections: list[list[str]]
) -> None:
    runs: list[list[str]] = []

    def run_pytest(
        name: str, host: ComfyUIInstall | None, arguments: list[str], told_apart: str = ""
    ) -> test_command.Stage:
        assert told_apart == (name.split(", ")[2] if len(selections) > 1 else "")
        runs.append(arguments)
        return test_command.Stage(name, True, passed=1)

    monkeypatch.setattr(test_command, "run_pytest", run_pytest)
    named = {"pinned": PINNED, "other": ABSENT}
    found = [named.get(name, FrontEnd(Path(name), name)) for name in fronts]
    stages = test_command.run_pytest_per_front_end(None, found, arguments)
    assert len(stages) == len(selections)
    assert sorted(runs) == sorted([*one, "-m", "browser", "tests/browser", *arguments] for one in selections)


def test_host_tests_alone_need_a_comfyui(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(test_command, "find_all_comfyui", list)
    with pytest.raises(SystemExit) as ended:
        test_command.main(["--host"])
    assert ended.value.code == 2
    assert "set COMFYUI_PATH to its folder" in capsys.readouterr().err
