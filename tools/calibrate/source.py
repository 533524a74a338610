"""What can be calibrated: something that samples a video while its attention is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from draftattention.draftattn_core.run.figures import BUCKETS, bucket_of
from draftattention.draftattn_core.run.settings import Settings
from tools.calibrate.jobs import Job, Recorded


class Source(Protocol):
    """A model with its sampler."""

    @property
    def steps(self) -> int:
        """Steps of a run."""

    @property
    def conditions(self) -> dict[str, object]:
        """What a run depends on beside prompt and seed, for the journal."""

    def check(self, prompt: str) -> None:
        """Raises ValueError if the model cannot take this prompt."""

    def record(self, job: Job, settings: Settings, whole: bool, on_step: Callable[[], object]) -> Recorded:
        """Run once and return what was measured.

        Args:
            settings: dense, and recording.
            whole: go to the end; else the run ends as soon as nothing more would be measured.
            on_step: called after every step.
        """


def steps_needed(steps: int) -> int:
    """Steps after which every bucket of progress was seen: a layer is measured once in each."""
    return next((step + 1 for step in range(steps) if bucket_of(step / steps) == BUCKETS - 1), steps)


def sees_all_buckets(steps: int) -> bool:
    """Whether a run of so many steps visits every bucket; of fewer steps the others take the nearest one's figures."""
    return len({bucket_of(step / steps) for step in range(steps)}) == BUCKETS


def size_words(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{math.floor(seconds / 60)} min"
