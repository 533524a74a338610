"""Which condition a transformer call serves, told by the text it is given: diffusers does not say."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor

from .clock import Tick


@dataclass(eq=False)
class Branches:
    """The conditions of one run.

    A pipeline hands the same text embeddings to the model at every step, and asks for the condition first. Guidance
    that skips layers asks for one condition twice at a step; the second time is a branch of its own.
    """

    _first: Hashable = None
    _step: tuple[int, int] | None = None
    _visits: dict[Hashable, int] = field(default_factory=dict)

    def of(self, text: Tensor, tick: Tick) -> tuple[Hashable, bool]:
        """Key of the branch that a call with these text embeddings serves, and whether it is the condition itself."""
        condition = (text.data_ptr(), tuple(text.shape))
        if self._first is None:
            self._first = condition
        if self._step != (tick.step, tick.sampler_step):
            self._step = (tick.step, tick.sampler_step)
            self._visits.clear()
        visit = self._visits[condition] = self._visits.get(condition, -1) + 1
        return (*condition, visit), condition == self._first and visit == 0
