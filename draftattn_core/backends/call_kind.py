"""The kind of a call: what decides which backend can serve it, and which binaries of its kernels it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..method.policy import TAILS, Bits, Method, Policy, TailName
from ..method.rules import rule_of
from ..phrase import LIST, Joined, Phrase, Text

GIVEN = "given"


@dataclass(frozen=True)
class Variant:
    """What decides which binaries a call takes, beside device, type and sizes.

    Attributes:
        method: of the selection; `GIVEN` where the core selects and kernels walk lists of the result.
        tail: of all heads.
        biased: whether extra tokens have a key bias.
        bits: of the scores.
        fp8: whether weights and values are multiplied in FP8; with 8 bits only.
    """

    method: Method = "head"
    tail: TailName = "linear1"
    biased: bool = False
    bits: Bits = 16
    fp8: bool = False

    def text(self) -> Text:
        """The variant in words."""
        parts: list[Text] = [
            Phrase("variant_method", "method {method}", method=self.method),
            Phrase("variant_tail", "tail {tail}", tail=self.tail),
            bias_in_words(self.biased),
        ]
        if self.bits != 16:
            parts.append(Phrase("variant_bits", "{bits}-bit scores", bits=self.bits))
        if self.fp8:
            parts.append(Phrase("variant_fp8", "FP8 values"))
        return Joined(parts, LIST)

    def __str__(self) -> str:
        return str(self.text())


def bias_in_words(biased: bool) -> Text:
    """Whether a call has a key bias."""
    return Phrase("variant_bias", "a key bias") if biased else Phrase("variant_no_bias", "no key bias")


def variants_of(policy: Policy, biased: bool) -> tuple[Variant, ...]:
    """One variant for each tail that `policy` gives to a head, the dearest last.

    Heads with different tails share the binaries of the dearest of them. All have scores of 16 bits: who has none of 8
    serves such heads too (`with_bits`).
    """
    tails = policy.tail if isinstance(policy.tail, tuple) else (policy.tail,)
    method = policy.method if rule_of(policy.method).ranking is not None else GIVEN
    return tuple(Variant(method, tail, biased) for tail in sorted(set(tails), key=TAILS.index))


def traits_of(policy: Policy) -> tuple[bool, bool]:
    """`anchored` and `gained` of calls under `policy`."""
    gains = policy.tail_gain if isinstance(policy.tail_gain, tuple) else (policy.tail_gain,)
    return policy.keep_first_frame or policy.keep_last_frame, any(gains)


@dataclass(frozen=True)
class CallKind:
    """What a backend is asked whether it can serve.

    Attributes:
        variants: of the kernels; a backend with kernels of ours serves a call only where it serves each of them.
        anchored: whether the blocks of a frame are kept whatever they score.
        gained: whether some head's tail has a gain.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    q_block: int
    k_block: int
    variants: tuple[Variant, ...] = (Variant(biased=True),)
    anchored: bool = False
    gained: bool = False

    @classmethod
    def of(cls, q: Tensor, q_block: int, k_block: int, policy: Policy, *, biased: bool) -> CallKind:
        """That of a call with queries q (B, H, L, D)."""
        return cls(q.device, q.dtype, q.shape[3], q_block, k_block, variants_of(policy, biased), *traits_of(policy))

    def with_tail(self, tail: TailName) -> CallKind:
        """The same with one tail for all heads."""
        return replace(self, variants=(replace(self.variants[0], tail=tail),))

    def with_bits(self, bits: Bits, fp8: bool = False) -> CallKind:
        """The same with scores of so many bits for all heads, and with 8 perhaps values in FP8."""
        fp8 = fp8 and bits == 8
        return replace(self, variants=tuple(replace(variant, bits=bits, fp8=fp8) for variant in self.variants))
