#!/usr/bin/env python3
"""One command for everything: python run.py {demo,test,bench,calibrate,doctor}.

Makes .venv beside this file, installs the pinned requirements of the command into it, and runs the command there.
A second call finds .venv ready. With --here the running Python is used as it is and nothing is installed.
Standard library only; this file only prepares and dispatches, the commands live in their own modules.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(os.path.abspath(__file__)).parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed-requirements.json"
OLDEST, NEWEST = (3, 10), (3, 13)

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class Command(NamedTuple):
    """A module that is run as ``python -m MODULE``, and the file of what it needs installed."""

    module: str
    requirements: str
    help: str


# A command is offered when its module is part of this checkout.
COMMANDS = {
    "demo": Command("demo", "requirements-demo.txt", "generate a video dense and sparse, side by side, with figures"),
    "test": Command("tests.run", "requirements-dev.txt", "lint, type-check and test"),
    "bench quality": Command("benchmarks.quality", "requirements-dev.txt", "error and picture quality against peers"),
    "bench frontier": Command(
        "benchmarks.frontier", "requirements-dev.txt", "steps, caching and sparsity at equal work"
    ),
    "bench calibration": Command(
        "benchmarks.calibration", "requirements-dev.txt", "budgets, profiles and masks at equal work"
    ),
    "bench cpu": Command("benchmarks.cpu", "requirements-dev.txt", "speed against dense attention on the CPU"),
    "bench kernels": Command("benchmarks.kernels", "requirements-dev.txt", "speed of the GPU kernels"),
    "bench e2e": Command("benchmarks.e2e", "requirements-dev.txt", "speed of whole sampling runs"),
    "bench gpu": Command("benchmarks.gpu", "requirements-dev.txt", "all that a GPU can tell, within N minutes"),
    "bench ranks": Command("benchmarks.ranks", "requirements-dev.txt", "speed over several GPUs"),
    "bench aot": Command("tools.aot", "requirements-dev.txt", "kernels compiled without a GPU"),
    "calibrate": Command("tools.calibrate", "requirements-demo.txt", "make a profile of a model, for budgets by error"),
    "doctor": Command("draftattention.draftattn_core.doctor", "requirements-demo.txt", "what this machine can run"),
}


class UserError(Exception):
    """One sentence for the user, and the exit code to end with."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str]) -> int:
    """Run a command line and return its exit code: 0, what the command returned, or 2 for bad input."""
    here = "--here" in argv
    words = [word for word in argv if word != "--here"]
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(usage())
            return OK if words else BAD_INPUT
        command, arguments = parse(words)
        if not here:
            python = prepare(ROOT / command.requirements)
            hand_over([str(python), os.path.abspath(__file__), "--here", *words])
        return run_here(command, [f"run.py {' '.join(words[: len(words) - len(arguments)])}", *arguments])
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("\nrun.py: stopped", file=sys.stderr)
        return INTERRUPTED


def available() -> dict[str, Command]:
    """The commands whose modules exist in this checkout."""
    return {name: command for name, command in COMMANDS.items() if _is_module(command.module)}


def _is_module(module: str) -> bool:
    path = ROOT.joinpath(*module.removeprefix("draftattention.").split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def parse(words: list[str]) -> tuple[Command, list[str]]:
    """Split a command line into the command and the arguments that are its own business."""
    commands = available()
    if words[0] in commands:
        return commands[words[0]], words[1:]
    benches = [name.split()[1] for name in commands if name.startswith(f"{words[0]} ")]
    if benches:
        if len(words) > 1 and words[1] in benches:
            return commands[f"{words[0]} {words[1]}"], words[2:]
        said = f"not {words[1]!r}" if len(words) > 1 else "as in: python run.py bench " + benches[0]
        raise UserError(f"{words[0]} takes one of {', '.join(benches)}; {said}")
    first_words = dict.fromkeys(name.split()[0] for name in commands)
    raise UserError(f"no command {words[0]!r}; choose one of {', '.join(first_words)}")


def usage() -> str:
    commands = available()
    width = max(map(len, commands), default=0)
    lines = ["usage: python run.py [--here] COMMAND [ARGUMENT ...]", ""]
    lines += [f"  {name:{width}}  {command.help}" for name, command in commands.items()]
    lines += [
        "",
        "The first call makes .venv and installs pinned requirements into it. COMMAND --help tells its arguments.",
        "--here uses the running Python as it is and installs nothing.",
    ]
    return "\n".join(lines)


def prepare(requirements: Path) -> Path:
    """Make .venv if it is not there, install what is new in the requirements, and return its Python."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = {file.name: _digest(file) for file in _closure(requirements)}
    stamp = _read_stamp() if python.exists() else {}
    if all(stamp.get(name) == digest for name, digest in wanted.items()):
        return python

    if not _has_pip(python):
        if not OLDEST <= sys.version_info[:2] <= NEWEST:
            raise UserError(
                f"this is Python {sys.version_info[0]}.{sys.version_info[1]}; making .venv needs "
                f"{_dotted(OLDEST)} to {_dotted(NEWEST)}: start run.py with one of those"
            )
        _say(f"making .venv with Python {_dotted(sys.version_info[:3])}")
        _call(
            [sys.executable, "-m", "venv", "--clear", str(VENV)],
            "could not make .venv (Debian and Ubuntu need the package python3-venv for it)",
        )
    _say(f"installing {requirements.name} into .venv; the first time this fetches PyTorch and takes a few minutes")
    STAMP.unlink(missing_ok=True)
    _call(
        [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-r", str(requirements)],
        f"pip could not install {requirements.name} (its reason is above); where no package index is at hand, "
        "use --here with a Python that has the packages",
    )
    STAMP.write_text(json.dumps({**stamp, **wanted}, indent=2) + "\n", encoding="utf-8")
    _say(".venv is ready")
    return python


def _has_pip(python: Path) -> bool:
    # A .venv whose making was interrupted has a Python but no pip.
    return python.exists() and subprocess.call([str(python), "-c", "import pip"], stderr=subprocess.DEVNULL) == 0


def _closure(requirements: Path) -> list[Path]:
    """The file and those it takes in with -r."""
    files = [requirements]
    for line in requirements.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            files += _closure(requirements.parent / line[3:].strip())
    return files


def _digest(requirements: Path) -> str:
    # Of the lines, not the bytes: git may change line ends.
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read_stamp() -> dict[str, str]:
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _call(command: list[str], failure: str) -> None:
    if subprocess.call(command, stdin=subprocess.DEVNULL) != 0:
        raise UserError(failure, FAILED)


def hand_over(command: list[str]) -> NoReturn:
    """Go on as another process, which gets the terminal, the signals and the exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    # On Windows exec returns to the shell at once, so wait; Ctrl-C reaches the child by itself.
    process = subprocess.Popen(command)
    while True:
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:
            continue


def run_here(command: Command, argv: list[str]) -> int:
    """Run the module as ``python -m`` would, in this process, with the repository on the import path."""
    sys.argv = argv
    # In front of everything: an installed copy of the package must not stand in for this checkout.
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != str(ROOT))]
    try:
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not package or (ROOT / package).exists() or (ROOT / f"{package}.py").exists():
            raise
        raise UserError(
            f"{sys.executable} lacks the package {package!r} ({command.requirements} lists what is needed); "
            "install it there, or run without --here"
        ) from error
    return OK


def _say(message: str) -> None:
    print(f"run.py: {message}", flush=True)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
