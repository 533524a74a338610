"""Launches of Triton kernels without a GPU: what would be compiled, and how many times, written down instead of run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature


@dataclass
class Launches:
    """Kernels launched since the start, each with the key of the binary that Triton would have taken.

    Attributes:
        target: the GPU they would be compiled for.
        keys: per launch, the kernel's name and Triton's own key: types, specialised values, options.
    """

    target: GPUTarget = GPUTarget("cuda", 90, 32)
    keys: list[tuple[str, str]] = field(default_factory=list)
    _binders: dict[JITFunction, Any] = field(default_factory=dict)

    @property
    def binaries(self) -> set[tuple[str, str]]:
        """What would have been compiled."""
        return set(self.keys)

    def key_of(self, kernel: JITFunction, *args: object, **kwargs: object) -> str:
        """Triton's key of the binary for these arguments."""
        if kernel not in self._binders:
            # Triton asks the machine's driver for the target here; there is none, so the target is given.
            backend = make_backend(self.target)
            self._binders[kernel] = create_function_from_signature(kernel.signature, kernel.params, backend)
        _, specialization, options = self._binders[kernel](*args, **kwargs)
        return str(specialization) + str(sorted(options.items()))

    def run(self, kernel: JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> None:
        self.keys.append((kernel.fn.__name__, self.key_of(kernel, *args, **kwargs)))
