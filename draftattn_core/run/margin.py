"""Margin: how much lower than promised an error must be predicted for the promise to hold.

A curve rests on a few rows of one call for each bucket of progress, and a solver takes what looks cheap, so later calls
lie above it as often as below. Without a margin 22 to 72 % of held-out layer calls of the tiny model broke a promise of
0.03 to 0.1 (768 and 3,072 tokens, 25 or 45 calls a row; curves of the run's own first calls). The worst of four calls
of other seeds instead left 16 to 29 %. Most of what is left is drift within a bucket, which more runs see no more of.
"""

from __future__ import annotations

import math

ONE_CALL = 0.6
# Up to so many calls the worst of them is no surer than one.
FEW_CALLS = 4


def margin(calls: int) -> float:
    """By what a promised error is divided before densities are solved for it, with curves of `calls` calls (1 or more).

    About one layer call in twenty still breaks the promise, few by more than a tenth.
    """
    return 1.0 + ONE_CALL * min(1.0, math.sqrt(FEW_CALLS / max(1, calls)))
