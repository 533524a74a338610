"""What the core hands to kernels and gets from them: tail, limits, selection and geometry. Torch only, no Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tail:
    """Expansion of every video key block (design.md section 1), g blocks in all.

    Statistics are float32 (float64 for float64 inputs); kernels take the operands of their products in the dtype of q,
    see `to`, and everything contiguous.

    Attributes:
        log_weight: (H, g) log of each block's tokens plus the head's log gain, -inf for heads whose tail is `none`.
        k_mean, v_mean: (B, H, g, D).
        cov: (B, H, D, D) average cross-covariance of what the ranks leave, keys x values; zero for heads without a
            linear term; None where no head has one.
        u, w: (B, H, g, ranks, D) singular pairs, the singular value folded into w; zero where a head uses fewer ranks;
            None where no head uses any.
    """

    log_weight: Tensor
    k_mean: Tensor
    v_mean: Tensor
    cov: Tensor | None = None
    u: Tensor | None = None
    w: Tensor | None = None

    @property
    def ranks(self) -> int:
        return 0 if self.u is None else self.u.shape[-2]

    def parts(self) -> tuple[Tensor, ...]:
        """Its tensors in the order of the attributes, without those that are None: `Tail(*parts)` is the same."""
        return tuple(x for x in (self.log_weight, self.k_mean, self.v_mean, self.cov, self.u, self.w) if x is not None)

    def of_heads(self, part: slice) -> Tail:
        """The same for some of the heads, as views."""
        return Tail(self.log_weight[part], *(x[:, part] for x in self.parts()[1:]))

    def of_batch(self, batch: int, heads: int | slice) -> Tail:
        """The same for one batch element and one or some of the heads, as views without the axes indexed away."""
        return Tail(self.log_weight[heads], *(x[batch, heads] for x in self.parts()[1:]))

    def to(self, dtype: torch.dtype) -> Tail:
        """The same as kernels take it: contiguous, its products' operands in `dtype`."""
        return Tail(self.log_weight.float().contiguous(), *(x.to(dtype).contiguous() for x in self.parts()[1:]))


class Selected(NamedTuple):
    """A selection as kernels walk it, contiguous.

    Attributes:
        lists: (B, H, q blocks, k blocks) int32, ascending key blocks of each query block; past the count all others
            follow, descending: read from the end, they ascend. Only a tail reads them, and they have to be video.
        counts: (B, H, q blocks) int32, how many entries of each list are meant.
        words: (B, H, q blocks, ceil(k blocks / 32)) int32, the map as bits, lowest first.
    """

    lists: Tensor
    counts: Tensor
    words: Tensor


@dataclass(frozen=True)
class Limits:
    """How much of a draft map may be kept, ready on the device; to be read only.

    Attributes:
        rows: (H, R) int32, entries that each row keeps or is promised, forced ones included.
        heads: (H,) int32, entries that each head's whole map keeps, promises included.
        mass: of a row's softmax that is to be kept.
        rescue: whether a row that ends empty gets its best entry.
    """

    rows: Tensor | None = None
    heads: Tensor | None = None
    mass: float = 1.0
    rescue: bool = False


@dataclass(frozen=True)
class Geometry:
    """How one call's tokens fall into blocks, as numbers that kernels compute with.

    Block order is the video tokens along some order, then the extra tokens. Blocks are never padded: block i of the
    video starts at position i * size, extra tokens start blocks of their own behind the last video token.

    Attributes:
        tokens: L, extra tokens included.
        video_tokens: how many of them are video; they come first in block order.
        q_block, k_block: tokens per query and per key block; kernels take powers of two from 16.
        perm: (L,) int64 on the device, position in block order -> row of the host's tensors.
    """

    tokens: int
    video_tokens: int
    q_block: int
    k_block: int
    perm: Tensor

    @property
    def q_video(self) -> int:
        return -(-self.video_tokens // self.q_block)

    @property
    def k_video(self) -> int:
        return -(-self.video_tokens // self.k_block)

    @property
    def q_total(self) -> int:
        return self.q_video - (self.video_tokens - self.tokens) // self.q_block

    @property
    def k_total(self) -> int:
        return self.k_video - (self.video_tokens - self.tokens) // self.k_block


@dataclass(frozen=True)
class Codes:
    """By what INT8 keys, and values with them, are read.

    Attributes:
        k_scale: (B, H, k blocks) float32; a key is its code times its block's scale, without what was subtracted from
            all keys of the head, pooled ones included.
        v_exponent: (B, H, k blocks) float32 whole numbers; v is float16 in units of 2^v_exponent, and may be summed in
            float16. None where v is in the dtype of q.
    """

    k_scale: Tensor
    v_exponent: Tensor | None


@dataclass(frozen=True)
class AttendInputs:
    """What every form of `attend` computes from.

    Attributes:
        q: (B, H, L, D) in the host's order, any strides; float16, bfloat16 (float32 works, slowly). D a power of two.
        k, v: the same, or with `in_order` contiguous in block order.
        geometry: how their tokens fall into blocks.
        selected: the block pairs, extra blocks included; its words are read for the tail on Hopper only.
        tail: expansion of the video key blocks as kernels take it (`Tail.to`), or None.
        key_bias: (B or 1, extra tokens) float32 added to the logits of extra tokens, or None.
        scale: factor on q.k, positive.
        in_order: whether k and v hold tokens in block order.
        codes: where k is INT8, in block order; None where it has the dtype of q.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    geometry: Geometry
    selected: Selected
    tail: Tail | None
    key_bias: Tensor | None
    scale: float
    in_order: bool = False
    codes: Codes | None = None
