"""The online softmax of the warp-specialised kernels: one step of it, and what is left at its end."""

# Functions of Triton take no types.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from .geometry import row_offsets


@triton.jit
def update(scores, top, total):
    """One step of the online softmax in base 2: weights, what earlier sums shrink by, new maximum, new total."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.math.exp2(scores - new_top[:, None])
    shrink = tl.math.exp2(top - new_top)
    return weights, shrink, new_top, total * shrink + tl.sum(weights, 1)


@triton.jit
def finish(acc, top, total, out_ptr, lse_ptr, rows, valid, o_n, o_d, DIM: tl.constexpr, LSE: tl.constexpr):
    """Store normalised rows, and the natural log of their denominators."""
    LN2: tl.constexpr = 0.6931471805599453
    dims = tl.arange(0, DIM)
    divisor = tl.where(total == 0.0, 1.0, total)
    tl.store(
        out_ptr + row_offsets(rows, o_n)[:, None] + dims[None, :] * o_d,
        (acc * (1.0 / divisor)[:, None]).to(out_ptr.dtype.element_ty),
        mask=valid[:, None],
    )
    if LSE:
        lse = tl.where(total == 0.0, float("-inf"), (top + tl.math.log2(divisor)) * LN2)
        tl.store(lse_ptr + rows, lse, mask=valid)
