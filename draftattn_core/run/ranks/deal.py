"""Heads dealt to ranks by their work, so that no rank waits long for the fullest.

Every rank gets as many heads as any other, for the exchange before attention moves equal parts. In order of falling
work they are dealt to and fro over the ranks (0, 1, ..., 1, 0, 0, 1, ...), as xDiT deals them by the counts of the last
step; here budgets say the work beforehand, so nothing is counted or gathered.
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
    # Heads of equal work keep their order, so equal work everywhere is dealt alike on every rank.
    falling = sorted(range(len(work)), key=lambda head: (-work[head], head))
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for place, head in enumerate(falling):
        turn, seat = divmod(place, ranks)
        hands[seat if turn % 2 == 0 else ranks - 1 - seat].append(head)
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
