"""A kernel's selection against its definition, with the room that rounding needs.

The method `head` ranks a head's pairs by log-softmax. Kernel and torch add a row's exponentials in different orders,
and a GPU's exp is approximate, so in float32 their ranks differ in the last bits and two pairs that straddle a head's
threshold by less than that may change places. Ranks in float64 tell such pairs from wrong ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.layout import LayoutTables
from draftattention.draftattn_core.method.policy import Policy, head_densities
from draftattention.draftattn_core.method.selection import select_blocks

# How far from its head's threshold a pair may lie and still be either kept or not, in units of float32's last place.
ULPS = 8.0


@dataclass(frozen=True)
class Difference:
    """How a selection differs from the one of the same scores in float64.

    Attributes:
        wrong: pairs on the wrong side of their head's threshold, and all that differ in a head that keeps another
            number of pairs than it should.
        close: pairs within rounding of the threshold that changed places.
        pairs: video block pairs that were compared.
    """

    wrong: int
    close: int
    pairs: int

    @property
    def note(self) -> str:
        """What a reader should know of a right selection."""
        return f"{self.close} of {self.pairs} block pairs differ within rounding of the threshold" if self.close else ""


def difference(scores: Tensor, keep: Tensor, tables: LayoutTables, policy: Policy) -> Difference:
    """Compare a selection with the definition.

    Args:
        scores: (B, H, video q blocks, video k blocks) float32 that it was made from.
        keep: (B, H, q blocks, k blocks) bool, what was selected.

    Raises:
        ValueError: if the policy's method is not `head`, the one the bench times.
    """
    if policy.method != "head":
        raise ValueError(f"selections by method {policy.method!r} are not compared here")
    rows, columns = scores.shape[2:]
    exact = scores.double()
    right = select_blocks(exact, tables, policy)
    differs = keep ^ right
    # Pairs with extra blocks are kept by everyone.
    wrong = int(differs.sum()) - int(differs[:, :, :rows, :columns].sum())
    differs, found, right = (x[:, :, :rows, :columns].flatten(2) for x in (differs, keep, right))
    rank = exact.log_softmax(-1).flatten(2)
    # Pairs promised to their rows are chosen by the scores as they are, whatever they rank: no room for those.
    promised = _promised(exact, tables, policy)
    threshold = rank.masked_fill(~right | promised, torch.inf).amin(-1, keepdim=True)
    room = ULPS * torch.finfo(torch.float32).eps * threshold.abs().clamp_min(1.0)
    as_many = found.sum(-1, keepdim=True) == right.sum(-1, keepdim=True)
    close = differs & as_many & ((rank - threshold).abs() <= room) & ~promised
    return Difference(wrong + int((differs & ~close).sum()), int(close.sum()), differs.numel())


def _promised(scores: Tensor, tables: LayoutTables, policy: Policy) -> Tensor:
    """(B, H, video pairs) bool: what the rows keep before their head's budget is spent."""
    heads, rows, columns = scores.shape[1:]
    floors = (math.floor(policy.floor * density * columns) for density in head_densities(policy.density, heads))
    by_row = replace(policy, method="row", density=tuple(count / columns for count in floors))
    return select_blocks(scores, tables, by_row)[:, :, :rows, :columns].flatten(2)
