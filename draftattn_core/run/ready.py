"""Before the first block of a run: its backend's kernels are compiled; and memory that a failed call has left."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..backends.call_kind import CallKind
from ..backends.nearest import Nearest
from ..backends.registry import choose_backend, nearest_served, passed_over, prepare_backend
from ..backends.request import OUT_OF_MEMORY
from ..method.policy import TAILS
from ..phrase import Text
from .settings import Settings

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ReadyBackends:
    """Which kinds of calls a run has prepared its backend for. Thread-safe."""

    _prepared: set[CallKind] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def prepare(
        self,
        settings: Settings,
        q: Tensor,
        biased: bool,
        wait: Callable[[Text], None],
        note: Callable[[Text], bool],
    ) -> Nearest | None:
        """Have the kernels compiled that calls like this one need, once, and say which backend is going without.

        Args:
            settings: of the run.
            q: (B, H, L, D) of a call; biased: whether the call has a key bias.
            wait: called with a message while kernels compile.
            note: keeps a message for the user; False if it was there already.

        Returns:
            What the run is to ask for instead, so that the backend can serve it; None for nothing, and for kinds that
            were prepared before.
        """
        kind = CallKind.of(q, settings.q_block, settings.k_block, settings.policy, biased=biased)
        with self._lock:
            if kind in self._prepared:
                return None
            self._prepared.add(kind)
        try:
            tails = TAILS if settings.auto_tail else ()
            prepare_backend(settings.backend, kind, tails, codes=settings.bits, report=wait)
            near = nearest_served(settings.backend, kind)
            if settings.backend == "auto":
                reason = passed_over(choose_backend("auto", kind).name if near is None else near.backend, kind)
                if reason is not None and note(reason):
                    log.info("DraftAttention: %s", reason)
            if near is not None and note(near.text()):
                log.info("DraftAttention: %s", near.text())
            return near
        except OUT_OF_MEMORY:
            # Says nothing of the kernels: the next call tries again.
            with self._lock:
                self._prepared.discard(kind)
        except Exception as error:
            # The calls that need it will meet the same and be counted for it.
            log.debug("DraftAttention could not prepare its backend: %s", error)
        return None


def free(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the device, where it has such a store."""
    empty_cache: Callable[[], None] | None = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if empty_cache is not None:
        empty_cache()
