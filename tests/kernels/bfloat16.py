"""Triton's interpreter multiplies the bit patterns of bfloat16 operands as if they were integers: put right here."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def right_bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `tl.dot` of bfloat16 tensors what it is on a GPU, for the duration of one test."""
    plain = InterpreterBuilder.create_dot

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(numpy.uint32) << 16).view(numpy.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
