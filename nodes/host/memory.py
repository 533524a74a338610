"""Allocations beside ComfyUI's own: recent hosts record what a block allocates and expect all of it freed at its end.

Index tables, biases and counts of ours live longer, so the sparse path runs outside that recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def unrecorded() -> Iterator[Callable[[], None]]:
    """Stop the recording for a `with` block; does nothing where the host has none.

    Yields:
        Ends it early: the host's own attention wants to be recorded.
    """
    try:
        from comfy import model_prefetch
    except ImportError:
        pause = None
    else:
        pause = getattr(model_prefetch, "pause_malloc_graph", None)
    with ExitStack() as stack:
        if pause is not None:
            stack.enter_context(pause())
        yield stack.close
