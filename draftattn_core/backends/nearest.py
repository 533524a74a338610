"""Nearest: the kind of call that a backend with fewer abilities serves in place of the one that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..method.policy import Policy, TailName
from ..phrase import Phrase, Text
from .call_kind import CallKind


@dataclass(frozen=True)
class Nearest:
    """What a run asks of a backend that cannot serve its calls as they are.

    Attributes:
        backend: its name.
        kind: of the calls it serves in their place.
        gains: whether their tails can have a gain.
        lost: what is given up, in words that follow "without".
    """

    backend: str
    kind: CallKind
    gains: bool
    lost: Text

    def policy(self, policy: Policy) -> Policy:
        """The nearest to `policy` that the backend serves."""
        served = {variant.tail for variant in self.kind.variants}

        def of(tail: TailName) -> TailName:
            return tail if tail in served else "mean"

        tail = tuple(of(name) for name in policy.tail) if isinstance(policy.tail, tuple) else of(policy.tail)
        gain = policy.tail_gain if self.gains else 0.0
        method = self.kind.variants[0].method
        # Without kernels of ours, blocks rank by mass alone.
        return replace(policy, method=method, tail=tail, tail_gain=gain, spread=False)

    def text(self) -> Text:
        """What the user is told of it."""
        return Phrase(
            "note_nearest",
            "backend {backend} serves this run without {lost}",
            backend=self.backend,
            lost=self.lost,
        )

    def __str__(self) -> str:
        return str(self.text())
