"""Policy: how a sparse call chooses its blocks and what stands in for the blocks it skips. Immutable."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from ..phrase import Phrase, Text
from .rules.table import RULES, check_rule

Method = str
TailName = Literal["none", "mean", "linear0", "linear1", "linear2"]
Bits = Literal[16, 8]

METHODS: tuple[Method, ...] = tuple(RULES)
TAILS: tuple[TailName, ...] = ("none", "mean", "linear0", "linear1", "linear2")

Density = float | tuple[float, ...]

# What may be given head by head.
DENSITIES = Phrase("what_densities", "densities")
TAIL_NAMES = Phrase("what_tails", "tails")
GAINS = Phrase("what_gains", "tail gains")
BITS_OF_HEADS = Phrase("what_bits", "numbers of bits")

_Value = TypeVar("_Value")


def check_density(density: Density) -> None:
    """Raises ValueError unless every density lies in 0..1."""
    for value in density if isinstance(density, tuple) else (density,):
        if not 0.0 <= value <= 1.0:
            raise ValueError(
                Phrase(
                    "density_range",
                    "density must lie between 0 and 1 (share of block pairs computed exactly), got {value}; "
                    "density is 1 - sparsity",
                    value=value,
                )
            )


@dataclass(frozen=True)
class HeadValues:
    """What a policy says to each head of a call, or of a part of it.

    Attributes:
        densities, tails, gains: one per head, see `Policy`.
        spreads: whether the spread enters the head's score.
        linear: whether some head of the whole call has a linear term.
        ranks: the most ranks per block that any head of the whole call uses.
        bits: one per head, see `Policy`; () for 16 throughout.
    """

    densities: tuple[float, ...]
    tails: tuple[TailName, ...]
    gains: tuple[float, ...]
    spreads: tuple[bool, ...]
    linear: bool
    ranks: int
    bits: tuple[Bits, ...] = ()

    def of(self, part: slice) -> HeadValues:
        """Those of some of the heads."""
        values = self.densities[part], self.tails[part], self.gains[part], self.spreads[part]
        return HeadValues(*values, self.linear, self.ranks, self.bits[part])


@dataclass(frozen=True)
class Policy:
    """What one sparse call may do.

    Attributes:
        density: share of video block pairs computed exactly, 0..1; a tuple gives one per head. For `top_p` it only
            sets the floor.
        method: name of a selection rule (`rules.table`). `head` spends one budget per head over its whole draft map,
            with a floor per row; `row` gives every query block its top-k; `top_p` keeps the shortest prefix holding the
            mass `top_p`; `draft` is the published rule: one threshold per head on the post-softmax map (arXiv
            2505.14708, section 4.2).
        tail: what stands in for skipped blocks (design.md section 1): nothing, their mean, or the linear term with
            0, 1 or 2 ranks per block; a tuple gives one per head.
        tail_gain: natural logarithm of a factor on the weight of every skipped block (see `tail_gain`); a tuple gives
            one per head. 0 weighs a block as its mean key does.
        floor: share of a row's even budget (density times key blocks) that every row keeps whatever its scores, 0..1
            (`head` and `top_p`).
        spread: add half the log of the within-block spread of K to the score of heads with a tail: blocks then rank by
            the error their tail would make, which grows with both. Heads without one rank by mass: what they skip is
            gone, however compact.
        keep_own: always keep the key blocks that overlap the query block.
        keep_first_frame, keep_last_frame: always keep the key blocks that hold tokens of that frame.
        top_p: mass for the `top_p` method, 0..1.
        bits: 8 for scores of INT8 codes (`method.codes`) where the backend has them, 16 for those of Q and K as they
            are; a tuple gives one per head.
        fp8_values: multiply weights and values of heads with 8 bits in FP8 where kernels have that (sm_89, sm_120).

    Raises:
        ValueError: if a value is out of range or a name unknown.
    """

    density: Density = 0.25
    method: Method = "head"
    tail: TailName | tuple[TailName, ...] = "linear1"
    tail_gain: float | tuple[float, ...] = 0.0
    floor: float = 0.5
    spread: bool = True
    keep_own: bool = True
    keep_first_frame: bool = False
    keep_last_frame: bool = False
    top_p: float = 0.9
    bits: Bits | tuple[Bits, ...] = 16
    fp8_values: bool = False

    def __post_init__(self) -> None:
        check_density(self.density)
        check_rule(self.method)
        for name in self.tail if isinstance(self.tail, tuple) else (self.tail,):
            if name not in TAILS:
                raise ValueError(f"unknown tail {name!r}: choose one of {', '.join(TAILS)}")
        for value in self.tail_gain if isinstance(self.tail_gain, tuple) else (self.tail_gain,):
            if not math.isfinite(value):
                raise ValueError(f"a tail gain must be a finite logarithm, got {value}: 0 means no gain")
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor must lie between 0 and 1, got {self.floor}")
        if not 0.0 <= self.top_p <= 1.0:
            raise ValueError(f"top_p must lie between 0 and 1, got {self.top_p}")
        for bits in self.bits if isinstance(self.bits, tuple) else (self.bits,):
            if bits not in (16, 8):
                raise ValueError(f"scores are computed in 16 or 8 bits, got {bits!r}")

    @property
    def drops(self) -> bool:
        """Whether some head leaves skipped blocks out altogether."""
        return "none" in (self.tail if isinstance(self.tail, tuple) else (self.tail,))

    @property
    def has_tail(self) -> bool:
        """Whether some head lets its skipped blocks count."""
        return any(name != "none" for name in (self.tail if isinstance(self.tail, tuple) else (self.tail,)))

    @property
    def has_codes(self) -> bool:
        """Whether some head may have scores of INT8 codes."""
        return 8 in (self.bits if isinstance(self.bits, tuple) else (self.bits,))

    def of(self, heads: int) -> HeadValues:
        """The policy head by head, for a call of `heads` heads.

        Raises:
            WrongHeadsError: if something was given head by head for another number of heads.
        """
        densities, tails = head_densities(self.density, heads), head_tails(self.tail, heads)
        spreads = tuple(self.spread and name != "none" for name in tails)
        linear, ranks = any(name.startswith("linear") for name in tails), max(tail_rank(name) for name in tails)
        bits = head_bits(self.bits, heads) if self.has_codes else ()
        return HeadValues(densities, tails, head_gains(self.tail_gain, heads), spreads, linear, ranks, bits)

    def with_density(self, density: Density) -> Policy:
        return replace(self, density=density)

    @classmethod
    def paper(cls, density: Density = 0.25) -> Policy:
        """DraftAttention as published; use it with `Layout(q_block=128, k_block=128, tile=(1, 8, 16))`."""
        return cls(density=density, method="draft", tail="none", spread=False, keep_own=False)


def tail_rank(name: TailName) -> int:
    """Ranks per block a tail needs; 0 for those without."""
    return int(name[-1]) if name.startswith("linear") else 0


class WrongHeadsError(ValueError):
    """Something was given head by head for another number of heads than the call has."""


def _one_per_head(what: Text, given: _Value | tuple[_Value, ...], heads: int) -> tuple[_Value, ...]:
    """A value for each head, from one for all or one per head.

    Raises:
        WrongHeadsError: if a tuple of another length was given.
    """
    values = given if isinstance(given, tuple) else (given,) * heads
    if len(values) != heads:
        raise WrongHeadsError(wrong_count(len(values), what, heads))
    return values


def wrong_count(count: int, what: Text, heads: int) -> Text:
    """What is said of values per head that are as many as another layer has heads."""
    return Phrase(
        "heads_count",
        "{count} {what} for {heads} heads: give one for all or one per head; "
        "those of a profile fit the model it was made on",
        count=count,
        what=what,
        heads=heads,
    )


def head_densities(density: Density, heads: int) -> tuple[float, ...]:
    """One density per head, or WrongHeadsError."""
    return _one_per_head(DENSITIES, density, heads)


def head_tails(tail: TailName | tuple[TailName, ...], heads: int) -> tuple[TailName, ...]:
    """One tail per head, or WrongHeadsError."""
    return _one_per_head(TAIL_NAMES, tail, heads)


def head_gains(gain: float | tuple[float, ...], heads: int) -> tuple[float, ...]:
    """One log gain per head, or WrongHeadsError."""
    return _one_per_head(GAINS, gain, heads)


def head_bits(bits: Bits | tuple[Bits, ...], heads: int) -> tuple[Bits, ...]:
    """Bits of the scores of each head, or WrongHeadsError."""
    return _one_per_head(BITS_OF_HEADS, bits, heads)
