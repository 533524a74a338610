"""Addresses beyond 2^31 elements without the memory: programs that believe to work on the 2^30th head of a tensor.

The interpreter's program number of the axis that counts heads is raised by `FAR`, and every access is checked: it has
to fall exactly where the tensor of that head would lie, and is then served from the small tensor that stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

FAR = 1 << 30


@dataclass(frozen=True)
class Kernel:
    """Which arguments of a kernel move with the head.

    Attributes:
        axis: of the grid that counts the heads of all batch entries.
        by_batch: arguments (B, H, ...) or (B, ...), by their own batch stride.
        by_pair: arguments (B * H, ...).
    """

    axis: int
    by_batch: frozenset[str]
    by_pair: frozenset[str] = frozenset()


def _names(text: str) -> frozenset[str]:
    return frozenset(f"{name}_ptr" for name in text.split())


KERNELS = {
    "prepare_keys_kernel": Kernel(
        1, _names("k v k_mean spread k_pooled v_pooled u w cov k_copy v_copy shift k_scale v_exponent")
    ),
    "means_kernel": Kernel(1, _names("x mean")),
    "row_kernel": Kernel(1, _names("score ranked"), _names("threshold tie")),
    "histogram_kernel": Kernel(1, _names("ranked"), _names("bins")),
    "head_threshold_kernel": Kernel(0, frozenset(), _names("bins threshold need")),
    "tie_kernel": Kernel(1, _names("ranked"), _names("threshold tie")),
    "emit_kernel": Kernel(1, _names("score ranked keep list list_count words"), _names("threshold tie")),
    "list_kernel": Kernel(1, _names("keep list list_count words")),
    "attend_kernel": Kernel(1, _names("q k v out lse list count words bias k_mean v_mean cov u w k_scale v_exponent")),
    "tail_kernel": Kernel(1, _names("q out lse words k_mean v_mean cov u w")),
    "edge_kernel": Kernel(1, _names("q k v out lse list count slot")),
    "whole_kernel": Kernel(1, _names("q k v out lse list count")),
}


class Windows:
    """Where accesses of the running kernel may fall, and where they are served from."""

    def __init__(self, kernel: Kernel, arguments: dict[str, object]) -> None:
        self.axis = kernel.axis
        self.spans: list[tuple[int, int, int]] = []
        for name, x in arguments.items():
            if not isinstance(x, Tensor):
                continue
            elements = 0
            if name in kernel.by_batch and x.shape[0] > 1:
                # A kernel without this argument counts heads alone: its arguments are (B, H, ...), contiguous.
                elements = FAR // int(arguments.get("heads", x.shape[1])) * x.stride(0)  # type: ignore[call-overload]
            elif name in kernel.by_pair:
                elements = FAR * x.stride(0)
            assert elements == 0 or elements >= 1 << 30
            length = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride()))
            start = x.data_ptr() + elements * x.itemsize
            self.spans.append((start, start + length * x.itemsize, elements * x.itemsize))

    def near(self, pointers: TensorHandle, mask: Any) -> TensorHandle:
        """The addresses that stand for `pointers`; where the mask hides an access, any."""
        wanted = pointers.data.astype(numpy.uint64)
        # A load by descriptor comes here as one by pointers, its bounds as a plain array.
        bounds = mask.data if isinstance(mask, TensorHandle) else mask
        active = numpy.broadcast_to(bounds.astype(bool), wanted.shape)
        found = wanted.copy()
        missing = active.copy()
        for start, end, moved in self.spans:
            inside = active & (wanted >= numpy.uint64(start)) & (wanted < numpy.uint64(end))
            found = numpy.where(inside, wanted - numpy.uint64(moved), found)
            missing &= ~inside
        if missing.any():
            raise IndexError(f"{int(missing.sum())} of {missing.size} accesses fall outside every tensor")
        return TensorHandle(found, pointers.dtype)


def move_programs_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here to the end of the test, kernels work on heads from `FAR` on."""
    running: list[Windows] = []
    call, program = GridExecutor.__call__, InterpreterBuilder.create_get_program_id
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    atomic = InterpreterBuilder.create_atomic_rmw

    def far_call(self: GridExecutor, *args: object, **kwargs: object) -> None:
        arguments = {**dict(zip(self.arg_names, args)), **kwargs}
        running.append(Windows(KERNELS[self.fn.__name__], arguments))
        try:
            call(self, *args, **kwargs)
        finally:
            running.pop()

    def far_program(self: InterpreterBuilder, axis: int) -> TensorHandle:
        handle = program(self, axis)
        if axis == running[-1].axis:
            handle = TensorHandle(handle.data + numpy.int32(FAR), handle.dtype)
        return handle

    def far_load(
        self: InterpreterBuilder, pointers: TensorHandle, mask: TensorHandle, *rest: object, **how: object
    ) -> TensorHandle:
        return load(self, running[-1].near(pointers, mask), mask, *rest, **how)

    def far_store(
        self: InterpreterBuilder, pointers: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: object
    ) -> None:
        store(self, running[-1].near(pointers, mask), value, mask, *rest)

    def far_atomic(
        self: InterpreterBuilder,
        operation: object,
        pointers: TensorHandle,
        value: TensorHandle,
        mask: TensorHandle,
        *rest: object,
    ) -> TensorHandle:
        return atomic(self, operation, running[-1].near(pointers, mask), value, mask, *rest)

    monkeypatch.setattr(GridExecutor, "__call__", far_call)
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", far_program)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", far_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", far_store)
    monkeypatch.setattr(InterpreterBuilder, "create_atomic_rmw", far_atomic)


def reserved(x: Tensor, gap: int) -> Tensor:
    """A copy of x (1, 1, L, D) whose rows lie so far apart that the last begins beyond 2^31 elements; of the memory in
    between not a page ever exists. `gap`: elements more, so that no two tensors share their strides."""
    length, dim = x.shape[2:]
    stride = (1 << 31) // (length - 1) + gap
    try:
        storage = torch.empty(stride * (length - 1) + dim, dtype=x.dtype)
    except RuntimeError as error:
        pytest.fail(f"this machine does not reserve memory it has not got: {error}")
    assert stride * (length - 1) >= 1 << 31
    return storage.as_strided(x.shape, (storage.numel(), dim, stride, 1)).copy_(x)
