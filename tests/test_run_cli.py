"""run.py: what it says to bad input, and that preparing .venv does what is needed and no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import run

BIN = "Scripts" if os.name == "nt" else "bin"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with run.py, a demo and one bench."""
    shutil.copy(run.__file__, tmp_path)
    (tmp_path / "requirements-demo.txt").write_text("numpy\n")
    (tmp_path / "requirements-dev.txt").write_text("-r requirements-demo.txt\npytest\n")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "__main__.py").write_text("import os, sys\nprint(os.getcwd(), sys.argv)\nsys.exit(7)\n")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "quality.py").write_text("import no_such_package\n")
    return tmp_path


def run_py(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "run.py"), *words]
    return subprocess.run(command, cwd=checkout / "benchmarks", capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("fly", "no command 'fly'; choose one of demo, bench"),
        ("doctor", "no command 'doctor'; choose one of demo, bench"),
        ("--there demo", "no command '--there'; choose one of demo, bench"),
        ("bench", "bench takes one of quality; as in: python run.py bench quality"),
        ("bench speed", "bench takes one of quality; not 'speed'"),
        ("--here bench kernels", "bench takes one of quality; not 'kernels'"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(checkout: Path, words: str, sentence: str) -> None:
    result = run_py(checkout, *words.split())
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"run.py: {sentence}\n")
    assert not (checkout / ".venv").exists()


def test_help_lists_only_commands_whose_module_is_there(checkout: Path) -> None:
    result = run_py(checkout, "--help")
    assert result.returncode == 0
    assert [line.split("  ")[1] for line in result.stdout.splitlines() if line.startswith("  ")] == [
        "demo",
        "bench quality",
    ]
    assert run_py(checkout).returncode == 2


def test_here_runs_the_module_in_place_and_passes_on_arguments_and_exit_code(checkout: Path) -> None:
    result = run_py(checkout, "demo", "--x", "--here")
    assert (result.returncode, result.stderr) == (7, "")
    # The working directory stays the caller's, so that relative paths in arguments mean what they say.
    module = checkout / "demo" / "__main__.py"
    assert result.stdout == f"{checkout / 'benchmarks'} {[str(module), '--x']}\n"
    assert not (checkout / ".venv").exists()


def test_an_installed_module_of_the_same_name_does_not_stand_in_for_the_checkouts(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = checkout / "elsewhere"
    (elsewhere / "demo").mkdir(parents=True)
    (elsewhere / "demo" / "__main__.py").write_text("print('the installed one')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(elsewhere), str(checkout))))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    result = run_py(checkout, "--here", "demo")
    assert (result.returncode, "the installed one" in result.stdout) == (7, False)


def test_here_names_a_package_that_this_python_lacks(checkout: Path) -> None:
    result = run_py(checkout, "--here", "bench", "quality")
    assert result.returncode == 2
    assert result.stderr == (
        f"run.py: {sys.executable} lacks the package 'no_such_package' (requirements-dev.txt lists what is needed); "
        "install it there, or run without --here\n"
    )


def test_a_module_of_our_own_that_is_missing_is_a_traceback(checkout: Path) -> None:
    (checkout / "benchmarks" / "quality.py").write_text("import demo.gone\n")
    result = run_py(checkout, "--here", "bench", "quality")
    assert result.returncode == 1
    assert "ModuleNotFoundError: No module named 'demo.gone'" in result.stderr


class Installer:
    """Stands in for the programs that run.py starts: records them, and makes what `python -m venv` would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[str] = []
        self.pip_works = True
        self.has_pip = True

    def __call__(self, command: list[str], **_: object) -> int:
        if command[1:] == ["-c", "import pip"]:
            return 0 if self.has_pip else 1
        self.calls.append(command[2] if command[2] == "venv" else f"{command[2]} {Path(command[-1]).name}")
        if command[2] == "venv":
            (self.root / ".venv" / BIN).mkdir(parents=True, exist_ok=True)
            (self.root / ".venv" / BIN / ("python.exe" if os.name == "nt" else "python")).touch()
        return 0 if command[2] == "venv" or self.pip_works else 1


@pytest.fixture
def installer(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    installer = Installer(checkout)
    monkeypatch.setattr(run, "VENV", checkout / ".venv")
    monkeypatch.setattr(run, "STAMP", checkout / ".venv" / "installed-requirements.json")
    monkeypatch.setattr(subprocess, "call", installer)
    return installer


def test_the_second_call_installs_nothing(checkout: Path, installer: Installer) -> None:
    python = run.prepare(checkout / "requirements-demo.txt")
    assert python.is_file()
    assert installer.calls == ["venv", "pip requirements-demo.txt"]
    assert run.prepare(checkout / "requirements-demo.txt") == python
    assert len(installer.calls) == 2


def test_development_requirements_include_the_demo(checkout: Path, installer: Installer) -> None:
    run.prepare(checkout / "requirements-dev.txt")
    run.prepare(checkout / "requirements-demo.txt")
    assert installer.calls == ["venv", "pip requirements-dev.txt"]


def test_changed_requirements_are_installed_into_the_same_environment(checkout: Path, installer: Installer) -> None:
    run.prepare(checkout / "requirements-dev.txt")
    (checkout / "requirements-demo.txt").write_bytes(b"numpy\r\n")  # another line end is no change
    run.prepare(checkout / "requirements-dev.txt")
    assert installer.calls == ["venv", "pip requirements-dev.txt"]
    (checkout / "requirements-demo.txt").write_text("numpy\neinops\n")
    run.prepare(checkout / "requirements-dev.txt")
    assert installer.calls == ["venv", "pip requirements-dev.txt", "pip requirements-dev.txt"]


def test_a_failed_install_is_one_sentence_and_is_tried_again(checkout: Path, installer: Installer) -> None:
    installer.pip_works = False
    with pytest.raises(run.UserError, match=r"pip could not install requirements-demo\.txt .* use --here") as failure:
        run.prepare(checkout / "requirements-demo.txt")
    assert failure.value.code == 1
    installer.pip_works = True
    run.prepare(checkout / "requirements-demo.txt")
    assert installer.calls == ["venv", "pip requirements-demo.txt", "pip requirements-demo.txt"]


def test_an_environment_left_half_made_is_made_anew(checkout: Path, installer: Installer) -> None:
    installer.pip_works = installer.has_pip = False
    with pytest.raises(run.UserError):
        run.prepare(checkout / "requirements-demo.txt")
    installer.pip_works = True
    run.prepare(checkout / "requirements-demo.txt")
    assert installer.calls == ["venv", "pip requirements-demo.txt"] * 2


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 14, 0)])
def test_an_environment_is_made_only_with_a_python_that_the_pins_support(
    checkout: Path, installer: Installer, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(run.UserError, match=rf"this is Python 3\.{version[1]}; making \.venv needs 3\.10 to 3\.13"):
        run.prepare(checkout / "requirements-demo.txt")
    assert installer.calls == []
