"""Compilation in processes of their own: a compiler that crashes or hangs is a result, not the end of the run."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures import TimeoutError as OutOfTime
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import local

import triton

from tools.aot.compile import Compiled, Planned, compile_case
from tools.aot.plan import all_cases, representative_cases

LIMIT_SECONDS = 600.0


def compile_all(todo: Iterable[Planned], jobs: int) -> Iterator[tuple[Planned, Compiled]]:
    """Compile everything in `jobs` processes and yield results as they come."""
    mine = local()
    workers: list[ProcessPoolExecutor] = []

    def one(planned: Planned) -> Compiled:
        if getattr(mine, "worker", None) is None:
            # spawn: the compiler's threads do not survive a fork.
            mine.worker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            workers.append(mine.worker)
        try:
            waited = mine.worker.submit(_compile_named, planned.target, planned.case.name)
            compiled: Compiled = waited.result(LIMIT_SECONDS)
            return compiled
        except (BrokenProcessPool, OutOfTime) as error:
            _stop(mine.worker)
            mine.worker = None
            why = "took too long" if isinstance(error, OutOfTime) else "died"
            return Compiled(planned.target, planned.case.name, error=f"the compiler {why}")

    threads = ThreadPoolExecutor(jobs)
    try:
        futures = {threads.submit(one, planned): planned for planned in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            _stop(worker)


def _stop(worker: ProcessPoolExecutor) -> None:
    for process in list((worker._processes or {}).values()):
        process.kill()
    worker.shutdown(wait=False, cancel_futures=True)


_CASES: dict[tuple[str, str], Planned] = {}


def _compile_named(target: str, name: str) -> Compiled:
    # By name: kernels do not travel between processes.
    if not _CASES:
        _CASES.update({(p.target, p.case.name): p for p in (*all_cases(), *representative_cases())})
    with tempfile.TemporaryDirectory() as folder:
        # Triton keeps all its intermediate forms of every kernel; here they are of no further use.
        os.environ["TRITON_CACHE_DIR"] = folder
        if triton.__version__.startswith("3.3."):
            os.environ["TRITON_HIP_LLD_PATH"] = str(_no_linker(Path(folder)))
        return compile_case(_CASES[target, name])


def _no_linker(folder: Path) -> Path:
    """Stands in for ROCm's linker, which Triton 3.3 calls. Registers, stack and instructions are settled before it."""
    path = folder / "ld.lld"
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && echo none || cp "$4" "$6"\n', encoding="utf-8")
    path.chmod(0o755)
    return path
