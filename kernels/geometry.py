"""Geometry: how one call's tokens fall into blocks, as numbers that kernels compute with.

Block order is the video tokens along some order, then the extra tokens; `perm` takes a position in it to the row of
the host's tensors. Blocks are never padded: block i of the video starts at position i * size, extra tokens start
blocks of their own behind the last video token.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Token counts, block sizes and the order of one call.

    Attributes:
        tokens: L, extra tokens included.
        video_tokens: how many of them are video; they come first in block order.
        q_block, k_block: tokens per query and per key block; powers of two from 16.
        perm: (L,) int64 on the device, position in block order -> row of the host's tensors.
    """

    tokens: int
    video_tokens: int
    q_block: int
    k_block: int
    perm: Tensor

    @property
    def q_video(self) -> int:
        return triton.cdiv(self.video_tokens, self.q_block)

    @property
    def k_video(self) -> int:
        return triton.cdiv(self.video_tokens, self.k_block)

    @property
    def q_total(self) -> int:
        return self.q_video + triton.cdiv(self.tokens - self.video_tokens, self.q_block)

    @property
    def k_total(self) -> int:
        return self.k_video + triton.cdiv(self.tokens - self.video_tokens, self.k_block)


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
