"""Heads dealt to ranks by their work, so that no rank waits long for the fullest.

Every rank gets as many heads as any other, for the exchange before attention moves equal parts. In order of falling
work each head goes to the rank that has least so far and still has room. xDiT deals to and fro over the ranks (0, 1,
..., 1, 0, 0, 1, ...) by the counts of the last step; on tables as unequal as those of real models that leaves the
fullest rank with more (tests/core/test_deal.py). Here budgets say the work beforehand: nothing is counted or gathered.
"""

from __future__ import annotations

from collections.abc import Sequence


def deal(work: Sequence[float], ranks: int) -> tuple[int, ...]:
    """Numbers of all heads, those of rank 0 first, then those of rank 1, and so on.

    Args:
        work: of each head, in any unit.
        ranks: a divisor of the number of heads.

    Raises:
        ValueError: if it is none.
    """
    if ranks < 1 or len(work) % ranks:
        raise ValueError(f"{len(work)} heads cannot be dealt evenly to {ranks} ranks")
    room = len(work) // ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    # Ties go to the lower number, of heads and of ranks.
    for head in sorted(range(len(work)), key=lambda head: (-work[head], head)):
        rank = min((rank for rank in range(ranks) if len(hands[rank]) < room), key=loads.__getitem__)
        hands[rank].append(head)
        loads[rank] += work[head]
    return tuple(head for hand in hands for head in sorted(hand))


def imbalance(work: Sequence[float], ranks: int, order: Sequence[int] | None = None) -> float:
    """Work of the fullest rank over the mean of all ranks: how much longer than shared evenly attention takes.

    Args:
        order: as `deal` gives it; None for the heads as they come.
    """
    heads = range(len(work)) if order is None else order
    each = len(work) // ranks
    loads = [sum(work[head] for head in heads[rank * each : (rank + 1) * each]) for rank in range(ranks)]
    return max(loads) * ranks / sum(loads)
