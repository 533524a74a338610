"""ComfyUI's own step caches (`core_rules`) as the step cache of a run."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from benchmarks.frontier.core_rules import CoreRule
from demo.flow import shifted
from draftattention.draftattn_core.run.evaluation import Answer, Evaluation, Outcome

CoreCache = Literal["EasyCache", "LazyCache"]
# The nodes' defaults: shares of the sampling between which evaluations may be skipped.
START, END = 0.15, 0.95
# At 20 steps the fourth evaluation lies on the start and the last on the end. ComfyUI counts the one in and the other
# out at shift 5; at others its rounding may decide otherwise.
_ROUNDING = 1e-6


class CoreStepCache:
    """A run without guidance, so one condition (see `StepCache`).

    Args:
        cache: which of the two nodes.
        threshold: its `reuse_threshold`.
        shift: of the flow's noise levels, to place the window.
    """

    def __init__(self, cache: CoreCache, threshold: float, shift: float) -> None:
        start, end = (float(shifted(torch.tensor(1.0 - share), shift)) + _ROUNDING for share in (START, END))
        self._lazy = cache == "LazyCache"
        self._rule = CoreRule(threshold, start, end, lazy=self._lazy)

    def answer(self, x: Tensor, evaluation: Evaluation) -> Answer | None:
        found = self._rule.answer(x, evaluation.level)
        if found is None:
            return None
        return Answer((x - found) / evaluation.level if self._lazy else found, Outcome.REUSED)

    def store(self, x: Tensor, prediction: Tensor, evaluation: Evaluation) -> None:
        y = x - evaluation.level * prediction if self._lazy else prediction
        self._rule.store(x, y, evaluation.level)

    def clear(self) -> None:
        """A cache serves one run and goes with it."""
