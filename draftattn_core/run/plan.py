"""Plan: the policy of every call of a run, head by head, or why a call is dense.

Three sources meet here and are resolved once per call: the policy the user chose, densities by noise level, layer and
head, and what was measured in this run: the tails and gains that the error probe found, and the bits of scores.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from ..method.policy import DENSITIES, GAINS, TAIL_NAMES, Bits, Density, Policy, WrongHeadsError, wrong_count
from ..phrase import Phrase, Text
from .probe import HeadTails
from .report import DenseReason, Position
from .spending import Spending

_Value = TypeVar("_Value")


class Densities(Protocol):
    """A source of densities: a `Schedule`, or whatever else knows how dense each layer and head may be."""

    def curve(self, progress: float) -> float:
        """Mean density meant for calls at `progress`; 1 for dense."""

    def density(self, progress: float, layer: int, layers: int) -> Density | None:
        """Density of a call, one for each head of the whole layer or one for all; None for dense."""

    def is_dense_layer(self, layer: int, layers: int) -> bool:
        """Whether the layer is dense at every noise level."""


class Plan:
    """What each call of one run is asked to do. Thread-safe.

    Args:
        policy: selection and tail; a tuple holds one value for each head of the whole layer.
        densities: replaces the policy's density, call by call.
        spending: spreads those densities over layers and heads by measured errors; None to leave them as they are.
    """

    def __init__(self, policy: Policy, densities: Densities, spending: Spending | None = None) -> None:
        self._policy = policy
        self._spending = spending
        self._densities = densities
        self._found: dict[tuple[int, tuple[int, ...]], HeadTails] = {}
        self._bits: dict[tuple[int, tuple[int, ...]], tuple[Bits, ...]] = {}
        self._lock = threading.Lock()

    def starts_dense(self, progress: float) -> bool:
        """Whether calls at `progress` are meant to be dense in every layer."""
        return self._densities.curve(progress) >= 1.0

    def at(self, position: Position, heads: int) -> Policy | DenseReason:
        """The policy of a call, what the probe found included; the reason if the plan wants it dense.

        Args:
            position: where in the run; `first_head` and `all_heads` say which heads of the layer the call holds.
            heads: number of heads in the call.

        Raises:
            WrongHeadsError: if something is given for another number of heads than the layer has.
        """
        density = self._densities.density(position.progress, position.layer, position.layers)
        if density is None:
            if self._densities.is_dense_layer(position.layer, position.layers):
                return DenseReason.DENSE_LAYER
            return DenseReason.SCHEDULE
        policy = _of_heads(self._policy.with_density(density), position, heads)
        bits = self.bits(position, heads)
        if bits is not None:
            policy = replace(policy, bits=bits)
        share = None if self._spending is None else self._spending.share(position, heads)
        if share is not None:
            return share.put_into(policy) or DenseReason.BUDGET
        found = self.found(position, heads)
        return policy if found is None else found.put_into(policy)

    def found(self, position: Position, heads: int) -> HeadTails | None:
        """What the probe found for these heads; None before it has looked."""
        with self._lock:
            return self._found.get((position.layer, position.numbers(heads)))

    def bits(self, position: Position, heads: int) -> tuple[Bits, ...] | None:
        """Bits of these heads' scores as measured; None before they were."""
        with self._lock:
            return self._bits.get((position.layer, position.numbers(heads)))

    def keep_bits(self, position: Position, bits: tuple[Bits, ...]) -> None:
        """Compute the scores of these heads in so many bits in every later call."""
        with self._lock:
            self._bits[(position.layer, position.numbers(len(bits)))] = bits

    def keep(self, position: Position, heads: int, found: HeadTails) -> None:
        """Use what the probe found in every later call of these heads."""
        with self._lock:
            self._found[(position.layer, position.numbers(heads))] = found


def _of_heads(policy: Policy, position: Position, heads: int) -> Policy:
    """The policy of the `heads` heads of a call."""
    if not position.all_heads:
        return policy
    numbers = position.numbers(heads)
    if len(numbers) != heads or max(numbers) >= position.all_heads:
        raise WrongHeadsError(
            Phrase(
                "heads_beyond",
                "heads {first} to {last} of a layer of {heads} heads",
                first=numbers[0],
                last=max(numbers),
                heads=position.all_heads,
            )
        )

    def part(what: Text, given: Sequence[_Value]) -> tuple[_Value, ...]:
        if len(given) != position.all_heads:
            raise WrongHeadsError(wrong_count(len(given), what, position.all_heads))
        return tuple(given[head] for head in numbers)

    if isinstance(policy.density, tuple):
        policy = replace(policy, density=part(DENSITIES, policy.density))
    if isinstance(policy.tail, tuple):
        policy = replace(policy, tail=part(TAIL_NAMES, policy.tail))
    if isinstance(policy.tail_gain, tuple):
        policy = replace(policy, tail_gain=part(GAINS, policy.tail_gain))
    return policy
