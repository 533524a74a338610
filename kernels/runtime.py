"""Where kernels run: the device a tensor lives on, and whether Triton interprets instead of compiling."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
import triton
from torch import Tensor

# Launch option of every kernel: a product and a sum are one instruction. Triton 3.10 will no longer do that by itself.
FUSED = {"enable_fp_fusion": True}


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of x current, so that Triton launches there and on that device's current stream."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def interpreted(kernel: object) -> bool:
    """Whether TRITON_INTERPRET was set when `kernel` was defined: it then runs in Python, on CPU tensors."""
    return not isinstance(kernel, triton.runtime.JITFunction)


def strides(x: Tensor) -> tuple[int, ...]:
    """Strides of x as a kernel takes them. That of a batch of one is never used, and 0: beyond 2^31 it would be another
    type of argument, and another binary."""
    return (0 if x.shape[0] == 1 else x.stride(0), *x.stride()[1:])
