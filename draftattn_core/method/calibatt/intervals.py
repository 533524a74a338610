"""Masks as lists of intervals, what a calibrated run reads instead of routing, and what makes them small.

A row of a mask is a few runs of kept key blocks, [start, end). Lists are padded to the longest row of their own mask
only ("trimmed per layer" in arXiv 2603.05503), may be merged (small gaps between runs are kept too, so that rows have
fewer runs), and late steps whose masks are nearly equal share one list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IOU = 0.97
# Runs in a row of a list that is followed. The paper merges and does not say how far; rows of few blocks never have as
# many, and at 720p it bounds lists that could be nine times as long.
MOST_RUNS = 32
# Block numbers of a whole 720p video fit, and a signed type is what every device indexes with.
_MOST_BLOCKS = torch.iinfo(torch.int16).max


@dataclass(frozen=True)
class Intervals:
    """Kept key blocks of a mask.

    Attributes:
        bounds: (..., R, n, 2) int16, runs [start, end) in ascending order; unused entries are [columns, columns).
        columns: key blocks of the mask.
    """

    bounds: Tensor
    columns: int

    @property
    def bytes(self) -> int:
        return self.bounds.numel() * self.bounds.element_size()

    def mask(self) -> Tensor:
        """The mask (..., R, columns) bool on the device of `bounds`."""
        # +1 where a run starts, -1 behind its end: the running sum is 1 inside. Unused entries cancel.
        steps = torch.zeros(*self.bounds.shape[:-2], self.columns + 1, dtype=torch.int8, device=self.bounds.device)
        index = self.bounds.long()
        one = torch.ones((), dtype=torch.int8, device=steps.device).expand(index.shape[:-1])
        steps.scatter_add_(-1, index[..., 0], one).scatter_add_(-1, index[..., 1], -one)
        return steps.cumsum(-1, dtype=torch.int8)[..., : self.columns] > 0


def intervals_of(mask: Tensor) -> Intervals:
    """Runs of kept blocks of a mask (..., R, C) bool, padded to its longest row.

    Raises:
        ValueError: for more than 32,767 key blocks.
    """
    columns = mask.shape[-1]
    if columns > _MOST_BLOCKS:
        raise ValueError(f"interval lists number at most {_MOST_BLOCKS} key blocks, the mask has {columns}")
    edge = torch.zeros_like(mask[..., :1])
    before, after = torch.cat([edge, mask], -1), torch.cat([mask, edge], -1)
    longest = int((after & ~before).sum(-1).max())
    # The first `longest` places of each kind of edge, in ascending order; what is missing sorts last, as `columns`.
    place = torch.arange(columns + 1, device=mask.device)
    starts, ends = (
        torch.where(found, place, columns).sort(-1).values[..., :longest]
        for found in (after & ~before, before & ~after)
    )
    return Intervals(torch.stack([starts, ends], -1).to(torch.int16), columns)


def close_gaps(mask: Tensor, most: int) -> Tensor:
    """The mask with gaps between runs kept too, smallest first, until no row has more than `most` runs.

    The paper's lists shrink from 21.5 to 6.3 GB by merging, with hardly a loss of sparsity; how it merges is not
    public, this is the least that bounds the length of a list. Of equal gaps the leftmost goes first.

    Args:
        mask: (..., R, C) bool.
        most: runs allowed in a row, at least 1.
    """
    if most < 1:
        raise ValueError(f"a row needs at least one run of blocks, got {most}")
    columns = mask.shape[-1]
    bounds = intervals_of(mask).bounds.long()
    runs = (bounds[..., 1] > bounds[..., 0]).sum(-1, keepdim=True)
    if bounds.shape[-2] <= most:
        return mask
    gaps = bounds[..., 1:, 0] - bounds[..., :-1, 1]
    real = torch.arange(gaps.shape[-1], device=mask.device) < runs - 1
    order = torch.argsort(gaps.masked_fill(~real, columns + 1), dim=-1, stable=True)
    rank = torch.argsort(order, dim=-1)
    closed = real & (rank < runs - most)
    # The closed gaps are runs of blocks themselves.
    filled = torch.stack([bounds[..., :-1, 1], bounds[..., 1:, 0]], -1)
    filled = torch.where(closed.unsqueeze(-1), filled, columns)
    return mask | Intervals(filled, columns).mask()


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks of one shape; 1 for two empty ones."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def group_steps(masks: Sequence[Tensor], iou: float = IOU, first: int = 0) -> list[list[int]]:
    """Groups of steps that may share one list: in a group, every two masks have an IoU above `iou`.

    A clique cover of the graph of similar steps, by putting each step, the last one first, into the first group whose
    members are all similar to it. The paper says "cliques with IoU > 0.97" for "late" steps; which they are is `first`.

    Args:
        masks: one per step, bool, of one shape; those of a layer with all its heads, or of one head.
        first: steps before it stay alone.

    Returns:
        Groups of step indices, ascending within and by their first step.
    """
    groups: list[list[int]] = []
    for step in reversed(range(first, len(masks))):
        for group in groups:
            if all(overlap(masks[step], masks[other]) > iou for other in group):
                group.append(step)
                break
        else:
            groups.append([step])
    return sorted([[step] for step in range(min(first, len(masks)))] + [sorted(group) for group in groups])


def share_masks(masks: Sequence[Tensor], groups: Sequence[Sequence[int]]) -> list[Tensor]:
    """The masks with each group's replaced by what any of them keeps: one object for the steps of a group."""
    shared = list(masks)
    for group in groups:
        union = torch.stack([masks[step] for step in group]).any(0)
        for step in group:
            shared[step] = union
    return shared
