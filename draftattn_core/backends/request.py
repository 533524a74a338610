"""What every backend is asked to compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.types import Tail
from ..geometry.layout import LayoutTables
from ..method.policy import Bits
from ..method.rules.call import RuleCall

# Before torch 2.5 there was CUDA's alone.
OUT_OF_MEMORY: type[RuntimeError] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


class BackendFailure(RuntimeError):
    """A backend that accepted a call turned out to be unable to compute it; it refuses such calls from now on."""


@dataclass(frozen=True)
class AttendRequest:
    """Attention over kept block pairs, with a tail for the skipped ones.

    Attributes:
        q, k, v: (B, H, L, D) in the host's token order, any strides; where heads have a token order of their own
            (`rules.call.HeadOrder`), in that.
        tables: index tables of the layout, on the device of q.
        keep: (B, H, q blocks, k blocks) bool, extra-token blocks included; extra blocks are always kept.
        tail: expansion of the video key blocks, or None to leave skipped blocks out.
        key_bias: (B or 1, extra tokens) float32 added to the logits of the extra tokens (-inf hides one), or None.
        scale: factor on q.k.
        counts: (B, H, q blocks) int32, how many key blocks each query block keeps, if they are at hand.
        bits: of the scores of each head (`method.codes`); () for 16 throughout.
        shift: (B, H, D) float32, what the tail's mean keys are without already, and the keys of heads with 8 bits are
            to lose; 0 for heads with 16. None where the tail's are as they come, and `key_shift` says what to subtract.
        fp8_values: whether weights and values of heads with 8 bits are multiplied in FP8.
        shared_tail: whether the rows of a query block share the weights of its tail (`backends.shared_tail`). Only a
            backend that makes its own requests computes that (`backends.kitchen`), and the reference.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tables: LayoutTables
    keep: Tensor
    tail: Tail | None
    key_bias: Tensor | None
    scale: float
    counts: Tensor | None = None
    bits: tuple[Bits, ...] = ()
    shift: Tensor | None = None
    fp8_values: bool = False
    shared_tail: bool = False

    @classmethod
    def of(
        cls,
        call: RuleCall,
        keep: Tensor,
        tail: Tail | None,
        counts: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> AttendRequest:
        """What a call amounts to once its pairs are chosen."""
        fp8 = call.policy.fp8_values and 8 in call.heads.bits
        common = call.key_bias, call.scale, counts, call.heads.bits, shift, fp8
        return cls(call.q, call.k, call.v, call.tables, keep, tail, *common)


def new_output(q: Tensor) -> Tensor:
    """Uninitialised (B, H, L, D) output laid out so that (B, L, H * D), what hosts want, is a view of it."""
    batch, heads, length, dim = q.shape
    return torch.empty(batch, length, heads, dim, dtype=q.dtype, device=q.device).transpose(1, 2)
