"""Settings of the step cache: which rule skips evaluations, from when on, and how far it may go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...phrase import Phrase, Text
from .spread import planned_steps

Rule = Literal["off", "easycache", "forecast", "spread"]
Quantity = Literal["velocity", "x0", "difference"]
PublishedModel = Literal["wan2.1", "wan2.2-5b", "wan2.2-a14b", "hunyuanvideo"]

RULES: tuple[Rule, ...] = ("off", "easycache", "forecast", "spread")
QUANTITIES: tuple[Quantity, ...] = ("velocity", "x0", "difference")
# EasyCache's threshold and first computed evaluations, published for runs of 50 steps: the defaults of its code for
# each model (H-EmbodVis/EasyCache; its page for Wan 2.2).
PUBLISHED_STEPS = 50
PUBLISHED: Mapping[PublishedModel, tuple[float, int]] = {
    "wan2.1": (0.05, 10),
    "wan2.2-5b": (0.05, 7),
    "wan2.2-a14b": (0.06, 7),
    "hunyuanvideo": (0.025, 5),
}
# Hosts find progress by inverting float32 sigmas, so an evaluation meant to fall on a point may land just beside it.
REACHED = 1e-4
# Computed evaluations a rule needs before it can skip one: EasyCache a rate, the forecast a measured error, a plan none
# beside the first.
NEEDED: Mapping[Rule, int] = {"off": 0, "easycache": 2, "forecast": 2, "spread": 1}
# Half of the model's output. On the trained models of the demo (3,072 tokens, Euler at shift 5: 8 steps at a share of
# 0.5, 20 at 0.25 to 0.5, 50 at 0.2; dense and with sparse attention at densities of 0.2 and 0.4) at most 0.2 is
# expected, so that a plan stands as it is. Models of random weights under fresh noise, which cannot be foretold, are
# beyond it.
MAX_FORECAST_ERROR = 0.5
# A run of which at most this share could be skipped has nothing to gain from a cache.
LEAST_GAIN = 0.25


@dataclass(frozen=True)
class StepCacheSettings:
    """What the step cache may do.

    Attributes:
        rule: `easycache` as published (see `easycache`), `forecast` (see `forecast`), `spread` (see `spread`: forecasts
            between steps that are planned, where threshold and max_skips count for nothing), or `off`.
        threshold: what a row of skipped evaluations may add up to, relative to the model's output: for `easycache` the
            expected change of the output (mean absolute value), for `forecast` the expected error of the forecasts
            (norm of the velocity). 0 computes everything, and still measures the errors.
        first: how many evaluations are computed at the start of the run; for `spread`, how many of the steps that it
            computes are the first ones, as far as its share allows (see `spread.planned_steps`).
        first_share: the same as a share of the run's steps, 0..1; None to go by `first`. Where two samplers take the
            steps of one schedule in turns (ComfyUI), `spread` plans for each of them, the other rules for the whole;
            where one scheduler leads two transformers (diffusers), it is the other way round.
        max_skips: how many evaluations in a row may be skipped; None for any number.
        windows: (start, end) ranges of progress, one or two, in which evaluations may be skipped.
        quantity: what is forecast: the velocity, the denoised latent x0, or the difference of velocity and latent.
            `spread` forecasts x0 under samplers that are known to add noise.
        max_reach: how far a forecast may reach beyond the last two computed evaluations, their distance in noise level
            being 1.
        offload: hold what is remembered on the CPU; it is copied back for every prediction.
        share: share of the steps that `spread` computes, above 0 and at most 1.
        correct: whether `spread` makes good what its forecasts missed, where the sampler's steps allow it (see
            `corrector`). Guidance must be a sum of the model's outputs: ComfyUI's is looked at, that of a diffusers
            pipeline cannot be, so switch this off there beside guiders that scale or remember outputs (CFG-Zero*,
            adaptive projected guidance).
        max_forecast_error: `spread` computes a step that it would have forecast where the forecast is expected to err
            by more than this, or by more than twice this where the next computed step corrects it. Relative to the norm
            of the velocity: the error measured at the last computed step, in proportion to the distance in noise level.
            inf lets the plan stand.

    Raises:
        ValueError: if a name is unknown or a value out of range.
    """

    rule: Rule = "off"
    threshold: float = 0.08
    first: int = 3
    first_share: float | None = None
    max_skips: int | None = 4
    windows: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    quantity: Quantity = "difference"
    max_reach: float = 6.0
    offload: bool = False
    share: float = 0.4
    correct: bool = True
    max_forecast_error: float = MAX_FORECAST_ERROR

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"unknown rule {self.rule!r}: choose one of {', '.join(RULES)}")
        if self.quantity not in QUANTITIES:
            raise ValueError(f"cannot forecast {self.quantity!r}: choose one of {', '.join(QUANTITIES)}")
        if not 0.0 <= self.threshold < math.inf:
            raise ValueError(f"threshold must be 0 or more, got {self.threshold}: 0 computes everything")
        if self.first < 0:
            raise ValueError(f"first is a number of evaluations, 0 or more, got {self.first}")
        if self.first_share is not None and not 0.0 <= self.first_share <= 1.0:
            raise ValueError(f"first_share is a share of the run between 0 and 1, got {self.first_share}")
        if self.max_skips is not None and self.max_skips < 1:
            raise ValueError(f"max_skips must be 1 or more, got {self.max_skips}: set rule to off to skip nothing")
        if not self.max_reach > 0.0:
            raise ValueError(f"max_reach must be above 0, got {self.max_reach}")
        if not self.max_forecast_error > 0.0:
            raise ValueError(f"max_forecast_error must be above 0, got {self.max_forecast_error}")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}: 1 computes every step")
        if not 1 <= len(self.windows) <= 2:
            raise ValueError(f"one or two windows are needed, got {len(self.windows)}")
        previous = 0.0
        for start, end in self.windows:
            if not previous <= start < end <= 1.0:
                raise ValueError(f"windows must ascend within 0..1 without overlap, got {self.windows}")
            previous = end

    @classmethod
    def published(cls, model: PublishedModel, *, as_share: bool = False) -> StepCacheSettings:
        """EasyCache with the published defaults for a model.

        Args:
            as_share: read the first computed evaluations as their share of the 50 steps they were published for.

        Raises:
            ValueError: for a model without published defaults.
        """
        if model not in PUBLISHED:
            raise ValueError(f"EasyCache has no defaults for {model!r}, only for {', '.join(PUBLISHED)}")
        threshold, first = PUBLISHED[model]
        share = first / PUBLISHED_STEPS if as_share else None
        return cls("easycache", threshold, first, share, max_skips=None)

    def first_of(self, steps: int) -> int:
        """How many evaluations, or by a share steps, are computed at the start of a run with that many steps."""
        return self.first if self.first_share is None else math.ceil(self.first_share * steps - REACHED)

    def planned_steps(self, steps: int) -> frozenset[int]:
        """Which steps of a run with that many `spread` computes."""
        return planned_steps(steps, self.share, self.first_of(steps))

    def in_first(self, index: int, step: int, steps: int) -> bool:
        """Whether an evaluation belongs to those that are computed at the start.

        Args:
            index: of the evaluation in the run, from 0.
            step: of the whole schedule it belongs to, from 0: a share is one of these, however many evaluations the
                sampler asks for in each, and of a run that two samplers take in turns.
            steps: of the whole schedule.
        """
        if self.first_share is None:
            return index < self.first
        return step < self.first_of(steps)

    def in_window(self, progress: float) -> bool:
        return any(start - REACHED <= progress <= end + REACHED for start, end in self.windows)


def nothing_to_gain(settings: StepCacheSettings, steps: int) -> Text | None:
    """Why a run of so many steps is better left alone, in a sentence; None if there is something to gain."""
    if settings.rule == "off":
        return None
    if settings.rule == "spread":
        planned = len(settings.planned_steps(steps))
        if planned < steps:
            return None
        return Phrase(
            "skip_all_computed", "nothing to gain at {steps} steps: all of them would be computed", steps=steps
        )
    first = max(settings.first_of(steps), NEEDED[settings.rule])
    could = max(0, steps - first - 1)
    if could > LEAST_GAIN * steps:
        return None
    return Phrase(
        "skip_no_gain",
        "nothing to gain at {steps} steps: the first {first} and the last are computed",
        steps=steps,
        first=min(first, steps),
    )
