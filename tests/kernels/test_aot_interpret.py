"""`bench aot --interpret`: files of cases in processes of their own, what came of them, the exit code."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from tools.aot import __main__ as aot
from tools.aot import interpret as aot_interpret
from tools.aot import summary as aot_summary
from tools.aot.interpret import interpret, unfit

ONE_OF_EACH = """
import os
import pytest

def test_right():
    assert os.environ["TRITON_INTERPRET"] == "1"

def test_wrong():
    assert False, "not what the reference gives"

def test_left_out():
    pytest.skip("for a reason")
"""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Files of cases in a folder of the test's."""
    monkeypatch.setattr(aot_interpret, "CASES", tmp_path)
    return tmp_path


def cases(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}_cases.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_counted_case_by_case(elsewhere: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = cases(elsewhere, "some", ONE_OF_EACH)
    (found,) = interpret([path], jobs=1)
    assert (found.name, found.passed, found.failed, found.skipped) == ("some_cases", 1, 1, 1)
    assert found.seconds > 0 and "not what the reference gives" in capfd.readouterr().out


def test_a_file_that_cannot_even_be_loaded_has_failed(elsewhere: Path) -> None:
    (found,) = interpret([cases(elsewhere, "some", "import nothing_like_it")], jobs=1)
    assert (found.passed, found.failed) == (0, 1)


def test_a_file_that_never_ends_has_failed(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot_interpret, "LIMIT_SECONDS", 2.0)
    (found,) = interpret([cases(elsewhere, "some", "import time\ntime.sleep(300)")], jobs=1)
    assert found.failed == 1 and found.seconds < 60


def test_cases_of_kernels_that_triton_lacks_are_named(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot_interpret, "lacking", lambda: "Triton 3.3.1 does not specialise warps")
    chosen = [cases(elsewhere, "hopper", ONE_OF_EACH), cases(elsewhere, "some", "def test_right(): pass")]
    left_out, ran = interpret(chosen, jobs=1)
    assert (left_out.name, left_out.passed, left_out.failed) == ("hopper_cases", 0, 0)
    assert left_out.left_out == "Triton 3.3.1 does not specialise warps" and (ran.passed, ran.failed) == (1, 0)
    page = elsewhere / "page.md"
    page.write_text(f"{aot_summary._line(aot_summary.INTERPRETED)}\n|---|\n", encoding="utf-8")
    monkeypatch.setattr(aot_summary, "PAGE", page)
    aot_summary.publish_interpreted("3.3.1", [left_out, ran], "abc")
    row = "| 3.3.1 | abc | 1 of 2 | 1 | 0 | 0 | hopper_cases: Triton 3.3.1 does not specialise warps |"
    assert page.read_text(encoding="utf-8").splitlines()[-1] == row


def test_a_failure_is_the_exit_code(elsewhere: Path) -> None:
    cases(elsewhere, "right", "def test_right(): pass")
    assert aot.run_interpreted("", jobs=2) == aot.OK
    cases(elsewhere, "wrong", "def test_wrong(): assert False")
    assert aot.run_interpreted("", jobs=2) == aot.FAILED
    assert aot.run_interpreted("right", jobs=2) == aot.OK
    with pytest.raises(SystemExit):
        aot.main(["--interpret", "--cases", "nothing like it"])


def test_an_old_interpreter_and_a_new_numpy_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(of_triton: str, of_numpy: str) -> str | None:
        monkeypatch.setattr("triton.__version__", of_triton)
        monkeypatch.setattr("numpy.__version__", of_numpy)
        return unfit()

    assert why("3.6.0", "2.3.5") is why("3.7.0", "2.4.0") is why("3.10.0", "2.4.1") is None
    assert why("3.6.0", "2.4.0") == "the interpreter of Triton 3.6.0 needs numpy before 2.4, here is 2.4.0"
    assert aot.run_interpreted("", jobs=1) == aot.BAD_INPUT


@pytest.mark.parametrize(
    ("arguments", "compiles", "interprets"),
    [
        ([], True, False),
        (["--interpret"], False, True),
        (["--inner"], True, True),
        (["--inner", "--interpret"], False, True),
        (["--inner", "--kernel", "attend"], True, False),
    ],
)
def test_another_triton_compiles_and_interprets(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], compiles: bool, interprets: bool
) -> None:
    """`--inner` is how the command calls itself with another Triton in front."""
    done: list[str] = []
    monkeypatch.setattr(aot, "run", lambda *_: done.append("compiled") or 0)
    monkeypatch.setattr(aot, "run_interpreted", lambda *_: done.append("interpreted") or 1)
    assert aot.main(arguments) == int(interprets)
    assert done == [*(["compiled"] if compiles else []), *(["interpreted"] if interprets else [])]


def test_the_other_triton_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[list[str], str]] = []

    def call(command: list[str], cwd: Path, env: dict[str, str]) -> int:
        called.append((command[3:], env["PYTHONPATH"].split(os.pathsep)[0]))
        return 1

    monkeypatch.setattr("tools.aot.triton.install", lambda version: tmp_path / version)
    monkeypatch.setattr("subprocess.call", call)
    assert aot.main(["--interpret", "--triton", "3.3.1", "--triton", "3.6.0", "--jobs", "2"]) == aot.FAILED
    passed = ["--interpret", "--jobs", "2", "--inner"]
    assert called == [(passed, str(tmp_path / "3.3.1")), (passed, str(tmp_path / "3.6.0"))]
