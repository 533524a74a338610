"""The interpreted tests of the kernels with the Triton that is running, and what came of them on disk.

Each file of `tests/kernels/interpreted` runs in a process of its own, as in the test command.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
import triton

from draftattention.kernels.attend_hopper import lacking
from tests.run import read_report
from tools.aot.compile import outline
from tools.aot.store import RESULTS, ROOT

CASES = ROOT / "tests" / "kernels" / "interpreted"
RESULTS_FILE = RESULTS / "interpreted.json"
LIMIT_SECONDS = 3600.0
# Interpreters older than 3.7 call what numpy 2.4 dropped.
OLD_INTERPRETER, NEWEST_FOR_IT = (3, 7), (2, 4)


@dataclass(frozen=True)
class Interpreted:
    """What one file of cases came to.

    Attributes:
        name: of the file, without its ending.
        code: changes when the kernels or the cases do.
        passed, failed, skipped: cases.
        seconds: it took.
        left_out: why it was not run at all, or empty.
    """

    name: str
    code: str
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
            yield Interpreted(path.stem, code_of(path), left_out=why or "")
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
    return Interpreted(path.stem, code_of(path), counted.passed, failed, skipped, round(time.monotonic() - start, 1))


def code_of(path: Path) -> str:
    """Changes with the kernels and with a file of cases, not with comments or docstrings."""
    words = []
    for source in (*sorted((ROOT / "kernels").glob("*.py")), path):
        tree = ast.parse(source.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        words.append(outline(tree))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def results() -> dict[str, list[Interpreted]]:
    """Triton version, oldest first -> what its files of cases came to."""
    if not RESULTS_FILE.exists():
        return {}
    found = json.loads(RESULTS_FILE.read_text(encoding="utf-8"))
    return {version: [Interpreted(**row) for row in found[version]] for version in sorted(found, key=_numbers)}


def keep(version: str, done: Iterable[Interpreted]) -> None:
    """Put results in the place of older ones of the same files."""
    known = results()
    by_name = {one.name: one for one in (*known.get(version, ()), *done)}
    known[version] = [by_name[name] for name in sorted(by_name)]
    plain = {name: [asdict(one) for one in known[name]] for name in sorted(known, key=_numbers)}
    RESULTS_FILE.parent.mkdir(parents=True, exist_ok=True)
    RESULTS_FILE.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def table() -> list[str]:
    """Markdown of all versions."""
    current = {path.stem: code_of(path) for path in files()}
    lines = ["| Triton | files | now | passed | failed | skipped | left out |", "|" + "---|" * 7]
    for version, found in results().items():
        ran = [one for one in found if not one.left_out]
        now = sum(current.get(one.name) == one.code for one in ran)
        reasons = dict.fromkeys(one.left_out for one in found if one.left_out)
        left_out = "; ".join(f"{', '.join(one.name for one in found if one.left_out == why)}: {why}" for why in reasons)
        counts = (sum(getattr(one, name) for one in ran) for name in ("passed", "failed", "skipped"))
        cells = (version, f"{len(ran)} of {len(current)}", now, *counts, left_out)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
