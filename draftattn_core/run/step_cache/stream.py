"""What is remembered of a run's evaluations: streams, and the branches of each."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from ..prediction import Prediction
from .corrector import Skipped
from .easycache import EasyCacheState
from .forecast import ForecastState
from .latents import Parts
from .log import OpenDecision, Reason

State: TypeAlias = "EasyCacheState | ForecastState"


@dataclass(frozen=True)
class Form:
    """What must not change while a branch's history is of use."""

    kind: Prediction
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    devices: tuple[torch.device, ...]

    @classmethod
    def of(cls, parts: Parts, kind: Prediction) -> Form:
        return cls(kind, *zip(*((part.shape, part.dtype, part.device) for part in parts), strict=True))


@dataclass(eq=False)
class BranchState:
    """What is kept of one branch.

    Attributes:
        dtype: of the predictions it is given.
    """

    form: Form
    dtype: torch.dtype
    state: State


@dataclass(eq=False)
class Stream:
    """One expert on one context window.

    Attributes:
        branches: by key.
        decider: key of the branch that decides this evaluation; None at the first.
        decision: about this evaluation, or the last one there was.
        served: branches answered in that evaluation, in order, and whether each is the condition itself.
        in_a_row: evaluations skipped since the last computed one.
        skipped: Euler steps that were skipped since the last computed evaluation; None if another kind of step was.
        in_parts: whether the host asks for the latent piece by piece under one name, so that no history fits.
    """

    branches: dict[Hashable, BranchState] = field(default_factory=dict)
    decider: Hashable = None
    decision: OpenDecision | None = None
    served: dict[Hashable, bool] = field(default_factory=dict)
    in_a_row: int = 0
    skipped: list[Skipped] | None = field(default_factory=list)
    in_parts: bool = False
    _repeats: int = 0
    _asked_once: int = 0

    def visit(self, level: float, first: float, asked_once: bool) -> None:
        """Take note of an evaluation at this level, before it is decided, and tell samplers from nodes that cut a
        latent into tiles, or ask for one condition twice in a way that its key does not show.

        No sampler asks twice at the level its run begins at, or three times at any: Heun's second evaluation of a step
        shares its level with the first of the next, at every level but the first. So one that has moved on from two
        levels in a row, asking once at each, does not begin to ask twice. What begins to ask twice at the second level
        cannot be told from Heun.

        Args:
            first: level that the run began at.
            asked_once: whether the sampler is known to ask once at each level.
        """
        again = self.decision is not None and self.decision.level == level
        if again:
            self._repeats += 1
        else:
            if self.decision is not None:
                self._asked_once = 0 if self._repeats else self._asked_once + 1
            self._repeats = 0
        if again and (asked_once or level == first or self._repeats > 1 or self._asked_once > 1):
            self.in_parts = True

    def add_skipped(self, level: float, next_level: float | None) -> None:
        """Take note of a step that is skipped; `next_level` is None if it is no Euler step."""
        if next_level is None or self.skipped is None:
            self.skipped = None
        else:
            self.skipped.append(Skipped(level, next_level))

    def compute_after_all(self, reason: Reason) -> None:
        """The evaluation that was to be skipped is computed."""
        self.in_a_row = 0
        if self.decision is not None:
            self.decision.compute(reason)
