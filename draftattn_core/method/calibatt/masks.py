"""From block energies to masks: how much mass a step must keep, the fewest blocks that hold it, a vote over prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..selection import row_top_k

RHO = 0.5
# Longest run that takes the constants of the four-step model; between the two published counts nothing is known.
FEW_STEPS = 8


@dataclass(frozen=True)
class EnergyTarget:
    """Mass that every query block keeps: eps(t) = floor + (start - floor) exp(-rate t / T), t = 0 the noisiest step.

    arXiv 2603.05503, equation 7, with A = floor, C = start, k = rate.

    Attributes:
        floor, start: shares of the mass, 0..1.
        rate: how fast the start is left, not negative.
        source: where the constants come from, in words.

    Raises:
        ValueError: if a value is out of range.
    """

    floor: float
    start: float
    rate: float
    source: str = "given"

    def __post_init__(self) -> None:
        if not (0.0 <= self.floor <= 1.0 and 0.0 <= self.start <= 1.0):
            raise ValueError(f"kept mass must lie between 0 and 1, got {self.floor} and {self.start}")
        if not (self.rate >= 0.0 and math.isfinite(self.rate)):
            raise ValueError(f"the rate must be finite and not negative, got {self.rate}")

    def at(self, step: int, steps: int) -> float:
        """eps of step `step` (from 0, the noisiest) in a run of `steps` steps."""
        if not 0 <= step < steps:
            raise ValueError(f"step {step} is not one of {steps} steps: count them from 0")
        return self.at_share(step / steps)

    def at_share(self, share: float) -> float:
        """eps where `share` = t / T of the run lies behind, 0..1."""
        return self.floor + (self.start - self.floor) * math.exp(-self.rate * share)

    @classmethod
    def for_steps(cls, steps: int, floor: float | None = None) -> EnergyTarget:
        """The published constants for 50 and 4 steps; other counts take the nearer kind, which is ours.

        Args:
            steps: steps of the run.
            floor: another A. The published one for 50 steps was found for Wan 14B and grows with the length of the
                sequence in a way that is not public, so other models should bring their own.
        """
        few = steps <= FEW_STEPS
        known = "LightX2V, 4 steps" if few else "Wan 2.1 14B, 50 steps"
        base, start, rate = (0.763, 0.863, 5.64) if few else (0.84, 0.99, 16.0)
        published = floor is None and steps == (4 if few else 50)
        source = f"published for {known}" if published else f"ours, after the constants published for {known}"
        return cls(base if floor is None else floor, start, rate, source)


def fewest_blocks(energy: Tensor, mass: float, forced: Tensor | None = None) -> Tensor:
    """Per row the fewest blocks whose energies sum to at least `mass` (one prompt's mask).

    Args:
        energy: (..., R, C), rows summing to 1. Equal energies go to the lowest block.
        mass: 0..1; 0 keeps nothing but what is forced, and a row that cannot reach it is kept whole.
        forced: (R, C) bool, blocks that are kept in any case and counted first.

    Returns:
        (..., R, C) bool.
    """
    ranked = energy if forced is None else energy.masked_fill(forced, torch.inf)
    order = torch.argsort(ranked, dim=-1, descending=True, stable=True)
    ordered = energy.gather(-1, order)
    # What the blocks before each one hold; a block is wanted while that falls short.
    before = ordered.cumsum(-1) - ordered
    keep = torch.zeros_like(energy, dtype=torch.bool).scatter_(-1, order, before < mass)
    return keep if forced is None else keep | forced


@dataclass
class MaskVotes:
    """How often each block was kept, over prompts (arXiv 2603.05503, equations 8 and 9).

    Votes of several runs may be added up, so a calibration can be resumed or shared out.

    Attributes:
        counts: (H, R, C) int32 on the CPU.
        prompts: how many masks were counted.
    """

    counts: Tensor
    prompts: int = 0

    @classmethod
    def of_shape(cls, heads: int, rows: int, columns: int) -> MaskVotes:
        return cls(torch.zeros(heads, rows, columns, dtype=torch.int32))

    def add(self, masks: Tensor) -> None:
        """Count masks (B, H, R, C) bool, one per batch element: each is a prompt of its own."""
        if masks.shape[1:] != self.counts.shape:
            raise ValueError(
                f"votes are for masks {tuple(self.counts.shape)} (heads, query blocks, key blocks), "
                f"got {tuple(masks.shape[1:])}: calibrate one model on one grid at a time"
            )
        self.counts += masks.sum(0, dtype=torch.int32).cpu()
        self.prompts += masks.shape[0]

    def merge(self, other: MaskVotes) -> None:
        """Add the votes of another calibration of the same call."""
        if other.counts.shape != self.counts.shape:
            raise ValueError(
                f"votes for masks {tuple(other.counts.shape)} cannot join votes for {tuple(self.counts.shape)}"
            )
        self.counts += other.counts
        self.prompts += other.prompts

    def decide(self, rho: float = RHO) -> Tensor:
        """(H, R, C) bool: blocks kept by at least the share `rho` of the prompts.

        A row that the vote empties keeps its most-voted block, the lowest of equal ones: it must attend to something.

        Raises:
            ValueError: if nothing was counted or rho is not in 0..1.
        """
        if self.prompts == 0:
            raise ValueError("no prompt has voted: run the calibration first")
        if not 0.0 <= rho <= 1.0:
            raise ValueError(f"rho is a share of the prompts between 0 and 1, got {rho}")
        # Whole votes: 0.3 of 10 prompts are 3, not the 3.0000000000000004 of the product.
        needed = math.ceil(rho * self.prompts - 1e-9)
        keep = self.counts >= needed
        best = row_top_k(self.counts.float(), torch.ones((), dtype=torch.int64))
        return keep | (best & ~keep.any(-1, keepdim=True))
