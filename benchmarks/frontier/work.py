"""Work: the share of a dense run's multiplications that a run spent (design.md, vocabulary)."""

from __future__ import annotations

from dataclasses import dataclass

# Attention's share of a dense evaluation on models that users run (arithmetic of their published sizes).
SHARES = {"as it is": None, "Wan 14B, 720p": 0.72, "HunyuanVideo 1.5, 720p": 0.90}


@dataclass(frozen=True)
class Ledger:
    """What a run spent.

    Attributes:
        computed: evaluations of the model.
        answered: evaluations answered without it.
        attention: sum over the computed evaluations of their attention's work, 1 for a dense one: exact pairs as a
            share of all pairs plus the tails' keys.
    """

    computed: int
    answered: int
    attention: float

    def work(self, reference: int, share: float) -> float:
        """Work beside `reference` dense evaluations of which attention is `share`."""
        return (self.computed * (1.0 - share) + self.attention * share) / reference
