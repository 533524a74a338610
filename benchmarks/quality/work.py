"""Equal work: what a row costs beside dense attention, and the selection density that makes it cost a given share.

Work is counted in token pairs computed exactly; a tail adds `tail_key_equivalents` keys to every query row. Not
counted, for any row: block means, the draft map and sorting it (below 0.1 % of dense at 8,000 tokens), and the one
pass over K and V that makes the average cross-covariance (D / 2 keys per query row).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.layout import LayoutTables
from draftattention.draftattn_core.method.policy import TailName
from draftattention.draftattn_core.method.tail.formula import tail_key_equivalents

TOLERANCE = 1e-3


def tail_shares(tails: Sequence[TailName], tables: LayoutTables, dim: int) -> tuple[float, ...]:
    """Work of each head's tail as a share of dense attention."""
    return tuple(tail_key_equivalents(tail, tables.k.video, dim) / tables.layout.tokens for tail in tails)


def exact_share(keep: Tensor, tables: LayoutTables) -> float:
    """Share of all token pairs in the kept block pairs of keep (B, H, q blocks, k blocks), mean over heads."""
    keys = torch.matmul(keep.double(), tables.k.counts.double())
    return float(torch.matmul(keys, tables.q.counts.double()).mean()) / tables.layout.tokens**2


def solve(
    share: Callable[[float], float], target: float, *, guess: float, tolerance: float = TOLERANCE
) -> float | None:
    """x in 0..1 for which the non-decreasing `share(x)` comes closest to `target`; None if share(0) is above it.

    `guess` is tried first. A step function may jump over the target; then the side closer to it is taken.
    """
    guess = min(1.0, max(0.0, guess))
    found = share(guess)
    if abs(found - target) <= tolerance / 4:
        return guess
    low, high = 0.0, 1.0
    low_share = share(0.0)
    if low_share > target + tolerance:
        return None
    best = min(((abs(low_share - target), 0.0), (abs(found - target), guess)))
    if found > target:
        high = guess
    else:
        low = guess
    for _ in range(24):
        middle = (low + high) / 2
        found = share(middle)
        best = min(best, (abs(found - target), middle))
        if best[0] <= tolerance / 4 or high - low < 1e-6:
            break
        if found > target:
            high = middle
        else:
            low = middle
    return best[1]


def spread_counts(mean: float, rows: int) -> Tensor:
    """(rows,) int64 whole numbers, floor or ceil of `mean`, evenly interleaved, whose mean is `mean` to 1 / rows."""
    edges = torch.arange(rows + 1, dtype=torch.float64) * mean + 0.5
    edges = edges.floor().to(torch.int64)
    return edges[1:] - edges[:-1]
