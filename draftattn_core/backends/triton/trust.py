"""Trust: which kernels have shown on this machine that they are right, and why others must not be used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from ...phrase import Phrase, Text
from ..request import OUT_OF_MEMORY, BackendFailure

log = logging.getLogger(__name__)


@dataclass
class Trust:
    """Verdicts on kernels. Safe to share between threads; holds words only, no tensors.

    Attributes:
        name: of the kernels, for messages.
        verdicts: per kernel, None for one that passed its check, or what is wrong with it.
    """

    name: Text
    verdicts: dict[Hashable, Text | None] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def reason_against(self, kernel: Hashable, check: Callable[[], Text | None]) -> Text | None:
        """Why a kernel cannot be used. The first call per kernel runs its check; other threads wait for the verdict.

        A check that raises leaves no verdict: memory that is short now says nothing about the kernel.
        """
        with self._lock:
            if kernel not in self.verdicts:
                self._pass(kernel, check())
            return self.verdicts[kernel]

    def knows(self, kernel: Hashable) -> bool:
        """Whether there is a verdict already."""
        with self._lock:
            return kernel in self.verdicts

    def withdraw(self, kernel: Hashable, reason: Text) -> None:
        """Stop using a kernel; says so once."""
        with self._lock:
            if self.verdicts.get(kernel) is None:
                self._pass(kernel, reason)

    def failure(self, kernel: Hashable, device: torch.device, error: Exception) -> RuntimeError:
        """What to raise for an error of a launch: short memory as torch says it, or the end of trust in `kernel`."""
        if short_of_memory(error):
            return OUT_OF_MEMORY(str(error))
        reason = Phrase(
            "kernel_fails", "a kernel does not run on {device}: {error}", device=str(device), error=in_short(error)
        )
        self.withdraw(kernel, reason)
        return BackendFailure(reason)

    def _pass(self, kernel: Hashable, reason: Text | None) -> None:
        self.verdicts[kernel] = reason
        if reason is not None:
            log.warning("DraftAttention does without %s: %s", self.name, reason)


def kernel_key(device: torch.device, *kernel: Hashable) -> tuple[Hashable, ...]:
    """What verdicts go by: a device with its number, so that two GPUs of one process are judged apart."""
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    return (device.type, index, *kernel)


def short_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; Triton's launcher does so in a plain RuntimeError."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, OUT_OF_MEMORY) or "out of memory" in str(error).lower()
    )


def compiler_failed(error: Exception) -> bool:
    """Whether an error is Triton's: of compilation, of resources, or of what it needs to start (a C compiler).

    Its passes and its launcher raise plain RuntimeErrors too, so what counts is whether its code raised.
    """
    if short_of_memory(error):
        return False
    frame = error.__traceback__
    names = [type(error).__module__]
    while frame is not None:
        names.append(str(frame.tb_frame.f_globals.get("__name__", "")))
        frame = frame.tb_next
    return any(name.partition(".")[0] == "triton" for name in names)


def in_short(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
