"""Where blocks and rows lie: the index arithmetic that kernels share (`types.Geometry` says what it is about)."""

# Functions of Triton take no types.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_span(block, size: tl.constexpr, video_blocks, video_tokens, tokens):
    """First position of a block and the position behind its last token, in block order."""
    extra = block >= video_blocks
    start = tl.where(extra, video_tokens + (block - video_blocks) * size, block * size)
    end = tl.minimum(start + size, tl.where(extra, tokens, video_tokens))
    return start, end


@triton.jit
def row_offsets(rows, stride):
    """Element offsets of rows; 64-bit, because rows x stride passes 2^31 within one model's tensors."""
    return rows.to(tl.int64) * stride
