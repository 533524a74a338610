"""``python run.py test``: lint, formatting, types, tests; one summary, with what was skipped and why at the end.

Tests that need ComfyUI run against the one that tools/comfyui/path.py finds, or against each of COMFYUI_PATHS. Those
that need a browser run against the first of them: see tests/browser/parts.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.browser.parts import ABSENT, FrontEnd, front_ends
from tools.comfyui.path import ComfyUIInstall, find_all_comfyui

ROOT = Path(__file__).resolve().parent.parent
# Module to run, with its arguments; the first word of a check's name is the package it needs.
CHECKS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "--output-format=concise", "."],
    "mypy": ["tests.type_check"],
}
# Each of them may start a ComfyUI of its own, which takes memory.
MOST_WORKERS = 4


@dataclass
class Stage:
    """What one check or one run of pytest came to."""

    name: str
    ok: bool
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped.total()} skipped"


def main(argv: list[str] | None = None) -> int:
    """Run the stages and return 0 if all passed, 1 if one failed, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="run.py test",
        description="Lint, type-check and test. Unknown arguments go to pytest.",
        allow_abbrev=False,
    )
    parser.add_argument("--host", action="store_true", help="only the tests that run a real ComfyUI; fail without one")
    parser.add_argument("--browser", action="store_true", help="only the tests that open ComfyUI in a Chromium")
    parser.add_argument("--no-checks", action="store_true", help="leave out ruff and mypy")
    options, pytest_arguments = parser.parse_known_args(argv)
    try:
        hosts, fronts = find_all_comfyui(), front_ends() if options.browser else []
    except ValueError as error:
        parser.error(str(error))
    if options.host and not hosts:
        parser.error("--host needs a ComfyUI: set COMFYUI_PATH to its folder")

    stages = []
    if not (options.host or options.browser or options.no_checks):
        stages += [check(name, command) for name, command in CHECKS.items()]
    if options.browser:
        stages += run_pytest_per_front_end(hosts[0] if hosts else None, fronts, pytest_arguments)
    if options.host or not options.browser:
        stages += run_pytest_per_host(hosts, options.host, pytest_arguments)
    print_summary(stages)
    return 0 if all(stage.ok for stage in stages) else 1


def check(name: str, command: list[str]) -> Stage:
    """Run a tool over the repository; its output is shown only if it fails."""
    package = name.split()[0]
    if importlib.util.find_spec(package) is None:
        return Stage(name, True, skipped=Counter([f"{name}: {package} is not installed in {sys.executable}"]))
    print(f"== {name}", flush=True)
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    ok = result.returncode == 0
    if not ok:
        print(result.stdout + result.stderr, flush=True)
    return Stage(name, ok, time.monotonic() - start, passed=int(ok), failed=int(not ok))


def run_pytest_per_host(hosts: list[ComfyUIInstall], host_only: bool, arguments: list[str]) -> list[Stage]:
    """Run all tests, those marked comfyui with the first host; then the marked ones again with each other host."""
    at_once = workers(arguments)
    if not hosts:
        return [run_pytest("pytest", None, [*at_once, *arguments])]
    return [
        run_pytest(
            f"pytest, ComfyUI {host.version} ({host.found_by})",
            host,
            [*at_once, *(["-m", "comfyui"] if host_only or index else []), *arguments],
        )
        for index, host in enumerate(hosts)
    ]


def workers(arguments: list[str]) -> list[str]:
    """What makes pytest run one process per core.

    A file stays in one process, since its tests may share a host that is slow to start. Nothing is added where
    pytest-xdist is not installed, where the caller says `-n` or asks for a debugger.
    """
    alone = any(word.startswith(("-n", "--numprocesses", "--pdb", "--trace")) for word in arguments)
    if alone or importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1)), "--dist", "loadfile"]


def run_pytest_per_front_end(host: ComfyUIInstall | None, fronts: list[FrontEnd], arguments: list[str]) -> list[Stage]:
    """Run the browser tests of as many front ends at once as there are cores; each has a host and a browser to itself.

    With a -k among the arguments they run in one go: pytest takes one.
    """
    selection = ["-m", "browser", "tests/browser", *arguments]
    if "-k" in arguments or ABSENT in fronts:
        return [run_pytest("pytest, browser", host, selection)]

    def run(front: FrontEnd) -> Stage:
        return run_pytest(f"pytest, browser, {front.name}", host, ["-k", f"[{front.name}-", *selection], front.name)

    with ThreadPoolExecutor(min(len(fronts), os.cpu_count() or 1)) as pool:
        return list(pool.map(run, fronts))


def run_pytest(name: str, host: ComfyUIInstall | None, arguments: list[str], told_apart: str = "") -> Stage:
    """Run pytest once, with its output on the terminal, and read the counts from its XML report.

    Lines of several runs at once begin with the words that tell them apart.
    """
    print(f"== {name}", flush=True)
    environment = dict(os.environ)
    if host is not None:
        environment["COMFYUI_PATH"] = str(host.path)
        environment.pop("COMFYUI_PATHS", None)  # the other hosts have runs of their own
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junit-xml={report}", *arguments]
        if told_apart:
            into = subprocess.PIPE
            with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=into, stderr=subprocess.STDOUT) as ran:
                for line in ran.stdout or ():
                    print(f"{told_apart}: {line.decode(errors='replace').rstrip()}", flush=True)
            status = ran.returncode
        else:
            status = subprocess.call(command, cwd=ROOT, env=environment)
        stage = read_report(name, report)
    stage.ok = status == 0
    stage.failed = stage.failed or int(not stage.ok)
    stage.seconds = time.monotonic() - start
    return stage


def read_report(name: str, report: Path) -> Stage:
    """Count the outcomes in a JUnit XML file; none if pytest ended before it wrote one."""
    stage = Stage(name, False)
    if not report.is_file():
        return stage
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            stage.failed += 1
        elif skipped is not None:
            stage.skipped[skipped.get("message") or "no reason given"] += 1
        else:
            stage.passed += 1
    return stage


def print_summary(stages: list[Stage]) -> None:
    width = max(len(stage.name) for stage in stages)
    print("\n== summary")
    for stage in stages:
        ran = stage.passed + stage.failed
        verdict = "ok" if stage.ok and ran else "skipped" if stage.ok else "FAILED"
        detail = f"  {stage.counts}" if stage.name.startswith("pytest") else ""
        print(f"{stage.name:{width}}  {verdict:7}  {stage.seconds:6.1f} s{detail}")
    skipped: Counter[str] = sum((stage.skipped for stage in stages), Counter())
    if skipped:
        print("\nSkipped:")
        for reason, count in skipped.most_common():
            print(f"{count:5} x {reason}")
    total = Stage("total", True, 0.0, sum(s.passed for s in stages), sum(s.failed for s in stages), skipped)
    print(f"\nchecks and tests together:\n{total.counts}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
