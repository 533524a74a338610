"""Triton's interpreter rounds to FP8 with carries lost and reads its NaN as a number: put right here, by torch."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def right_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make casts from float32 to e4m3 and products of e4m3 what they are on a GPU, for the duration of one test."""
    plain_cast, plain_dot = InterpreterBuilder.create_fp_to_fp, InterpreterBuilder.create_dot

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.float8e4nv:
            return plain_cast(self, src, dst_type, rounding_mode)
        # Whoever is beyond 448 saturates on a GPU; here it would be NaN.
        rounded = torch.from_numpy(numpy.ascontiguousarray(src.data)).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
        return TensorHandle(rounded.view(torch.uint8).numpy(), dst_type.scalar)

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.float8e4nv:
            return x
        wide = torch.from_numpy(numpy.ascontiguousarray(x.data)).view(torch.float8_e4m3fn).half()
        return TensorHandle(wide.numpy(), tl.float16)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain_dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", create_fp_to_fp)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
