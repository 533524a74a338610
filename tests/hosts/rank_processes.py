"""A few processes that run functions side by side over gloo, kept for a whole test module and always ended."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing as processes

START_S = 120.0
CALL_S = 60.0


def _work(rank: int, size: int, store: str, pipe: Connection, name: str) -> None:
    import importlib

    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        rendezvous = dist.FileStore(store, size)
        dist.init_process_group("gloo", store=rendezvous, rank=rank, world_size=size, timeout=timedelta(seconds=CALL_S))
        module = importlib.import_module(name)
        pipe.send(("ready", None))
        while (job := pipe.recv()) is not None:
            function, arguments = job
            torch.manual_seed(0)
            try:
                pipe.send(("done", getattr(module, function)(**arguments)))
            except BaseException:
                pipe.send(("failed", traceback.format_exc()))
    except EOFError:
        pass
    finally:
        # Without a farewell to the others: one of them may be gone.
        os._exit(0)


class RankProcesses:
    """`size` processes, rank 0 first, that have one gloo group."""

    def __init__(self, size: int, module: str, folder: str) -> None:
        context = processes.get_context("forkserver" if "forkserver" in processes.get_all_start_methods() else "spawn")
        if context.get_start_method() == "forkserver":
            # Imported once, for all processes of all sizes; the server ends with this process.
            context.set_forkserver_preload([module])
        self._pipes, self._processes = [], []
        store = os.path.join(folder, "rendezvous")
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(rank, size, store, theirs, module), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._answers("ready", START_S)

    def call(self, function: str, /, **arguments: Any) -> list[Any]:
        """What `function` of the module returns in each process, by rank.

        Raises:
            RuntimeError: with the process's traceback where it raised.
            TimeoutError: where it did not come back.
        """
        for pipe in self._pipes:
            pipe.send((function, arguments))
        return self._answers("done", CALL_S)

    def _answers(self, kind: str, seconds: float) -> list[Any]:
        found, failures = [], []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(seconds):
                raise TimeoutError(f"rank {rank} said nothing for {seconds:.0f} s")
            try:
                said, value = pipe.recv()
            except EOFError:
                said, value = "gone", None
            if said not in (kind, "gone"):
                failures.append(f"rank {rank}:\n{value}")
            found.append(value)
        if failures:
            raise RuntimeError("\n".join(failures))
        return found

    def close(self) -> None:
        """End every process, whatever it is doing."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(10)


@contextmanager
def rank_processes(size: int, module: str) -> Iterator[RankProcesses]:
    """`RankProcesses` that are ended when the block is left."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = RankProcesses(size, module, folder)
        try:
            yield ranks
        finally:
            ranks.close()
