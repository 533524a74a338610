"""Heads shared out among threads, each computing alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Threads of several calls are started one call after the other: see `_compute_alone`.
_STARTING = threading.Lock()


def share_out(work: Callable[[range], None], heads: int) -> None:
    """Call `work` with ranges that together are range(heads), in as many threads as torch would use.

    The products of one row are too small to be split well, and a thread that waits for another costs more than it
    brings on a busy machine.
    """
    with _STARTING:
        workers = min(torch.get_num_threads(), heads)
    if workers == 1:
        work(range(heads))
        return
    # Grad mode and inference mode are a thread's own.
    inference = torch.is_inference_mode_enabled()

    def share(first: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work(range(first, heads, workers))

    _compute_alone(share, workers)


def _compute_alone(work: Callable[[int], None], workers: int) -> None:
    """Run work(0) to work(workers - 1) in as many threads, in each of which torch splits nothing among further threads.

    `torch.set_num_threads` sets a number of the calling thread's own (OpenMP's and MKL's), but also the one that a
    thread takes over when it first uses torch. So all of ours set theirs before any computes, and the common one is put
    back at once.
    """
    ready = threading.Barrier(workers + 1)

    def alone(index: int) -> None:
        torch.get_num_threads()  # takes over the common number; later that would undo the next line
        torch.set_num_threads(1)
        ready.wait()
        work(index)

    with ThreadPoolExecutor(workers) as pool:
        with _STARTING:
            threads = torch.get_num_threads()
            try:
                started = [pool.submit(alone, index) for index in range(workers)]
                ready.wait()
            except BaseException:
                # A thread that did not start would keep the others waiting.
                ready.abort()
                raise
            finally:
                torch.set_num_threads(threads)
        for done in started:
            done.result()
