"""The interpreted tests of the kernels with the Triton that is running, and what came of them.

Each file of `tests/kernels/interpreted` runs in a process of its own, as in the test command.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy
import triton

from draftattention.kernels.attend_hopper import lacking
from tests.run import read_report
from tools.aot.store import ROOT

CASES = ROOT / "tests" / "kernels" / "interpreted"
LIMIT_SECONDS = 3600.0
# Interpreters older than 3.7 call what numpy 2.4 dropped.
OLD_INTERPRETER, NEWEST_FOR_IT = (3, 7), (2, 4)


@dataclass(frozen=True)
class Interpreted:
    """What one file of cases came to.

    Attributes:
        name: of the file, without its ending.
        passed, failed, skipped: cases.
        seconds: it took.
        left_out: why it was not run at all, or empty.
    """

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    left_out: str = ""

    def __str__(self) -> str:
        if self.left_out:
            return f"{self.name}: left out, {self.left_out}"
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{self.name}: {counts} in {self.seconds:.0f} s"


def unfit() -> str | None:
    """Why the running Triton cannot interpret here, or None."""
    if _numbers(triton.__version__) < OLD_INTERPRETER and _numbers(numpy.__version__) >= NEWEST_FOR_IT:
        return f"the interpreter of Triton {triton.__version__} needs numpy before 2.4, here is {numpy.__version__}"
    return None


def files(containing: str = "") -> list[Path]:
    """Files of cases whose names contain a word."""
    return sorted(path for path in CASES.glob("*_cases.py") if containing in path.stem)


def interpret(chosen: list[Path], jobs: int) -> Iterator[Interpreted]:
    """Run files of cases, `jobs` at once; results as they come. Those of kernels this Triton lacks are left out."""
    why = lacking()
    for path in chosen if why else ():
        if path.stem.startswith("hopper"):
            yield Interpreted(path.stem, left_out=why or "")
    running: list[subprocess.Popen[str]] = []
    threads = ThreadPoolExecutor(jobs)
    try:
        todo = [path for path in chosen if not (why and path.stem.startswith("hopper"))]
        for future in as_completed([threads.submit(_run, path, running) for path in todo]):
            yield future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.kill()


def _run(path: Path, running: list[subprocess.Popen[str]]) -> Interpreted:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
        process = subprocess.Popen(
            [*command, f"--junit-xml={report}", str(path)],
            cwd=ROOT,
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        running.append(process)
        try:
            said, _ = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
        counted = read_report(path.stem, report)
    failed = counted.failed or int(process.returncode != 0)
    if failed:
        print(said[-6000:], flush=True)
    skipped = counted.skipped.total()
    return Interpreted(path.stem, counted.passed, failed, skipped, round(time.monotonic() - start, 1))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
