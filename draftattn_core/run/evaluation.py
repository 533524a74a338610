"""One evaluation of the model: where in the run it stands, which branches it holds, and how its output is read."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor


class Outcome(str, Enum):
    """What became of an evaluation."""

    COMPUTED = "computed"
    REUSED = "reused"
    FORECAST = "forecast"

    def __str__(self) -> str:
        return self.value


class Uncorrected(str, Enum):
    """Why a computed evaluation leaves what forecasts before it missed as it is (see `step_cache.corrector`)."""

    STEPS = "other sampler than euler"
    NOISE = "noise added by the sampler"
    MASK = "soft mask"
    GUIDER = "guider of another node"
    GUIDANCE = "guidance of another node"
    WRAPPER = "wrapper of another node"
    UNKNOWN = "steps of the sampler unknown"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Branch:
    """One condition within an evaluation.

    Attributes:
        key: names the condition and the patches active on it; the same at every step.
        batch: its samples in the batch.
    """

    key: Hashable
    batch: slice


@dataclass(frozen=True, eq=False)
class Denoised:
    """How a host that asks for the denoised latent makes it: `x_share * x + output_share * prediction`.

    Attributes:
        x_share, output_share: float32, broadcastable to x: (B, 1, ..., 1).
    """

    x_share: Tensor
    output_share: Tensor

    def prediction(self, x: Tensor, denoised: Tensor) -> Tensor:
        """The model's own prediction, from what the host makes of it."""
        return (denoised - self.x_share * x) / self.output_share

    def denoised(self, x: Tensor, prediction: Tensor) -> Tensor:
        """What the host makes of a prediction."""
        return self.x_share * x + self.output_share * prediction


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation. The latent is the bare one: no channels or frames of conditions with it.

    Attributes:
        step: index of its noise level in the run, in order of first appearance, as in `Position`.
        sampler_step: index of the sampler's step it belongs to; second-order samplers have several noise levels a step.
        steps: steps of the sampler in this run, None if unknown.
        progress: 0 at the noisiest end of sampling, 1 at the clean end.
        level: noise level: t in 0..1 if `prediction` is "flow", else sigma of x = x0 + sigma * noise.
        prediction: what the model predicts, "flow" for noise - x0, "eps", "v", "edm", "x0" or another name of the
            host; "" if that is not known: such an evaluation is always computed.
        denoised: how the output is made from the prediction; None if the output is the prediction.
        branches: the conditions in the batch.
        conditional: index in `branches` of the condition itself, None if it is not in this evaluation.
        window: the context window, None for the whole video.
        expert: which model, where a run has several.
        device: where it is computed.
        is_last: whether it belongs to the last step of a run that ends without noise.
        next_level: noise level, in the terms of `level`, where a plain Euler step of the sampler ends; None
            if the sampler takes another kind of step, or nobody knows.
        uncorrected: why `next_level` is None, in so far as the host knows.
        streams: lengths along the last axis of x of several latents (video, audio) in one; () for one latent.
        before: steps of the whole schedule that another sampler took before this run.
        after: steps of it that are left to another one.
    """

    step: int
    sampler_step: int
    steps: int | None
    progress: float
    level: float
    prediction: str
    denoised: Denoised | None
    branches: tuple[Branch, ...]
    conditional: int | None
    window: Hashable
    expert: Hashable
    device: torch.device
    is_last: bool
    streams: tuple[int, ...] = ()
    next_level: float | None = None
    uncorrected: Uncorrected = Uncorrected.UNKNOWN
    before: int = 0
    after: int = 0

    @property
    def renoised(self) -> bool:
        """Whether the sampler is known to add fresh noise at its steps (ancestral and SDE samplers, churn)."""
        return self.uncorrected is Uncorrected.NOISE

    @property
    def asked_once(self) -> bool:
        """Whether the sampler is known to ask for each condition once at a noise level, as Euler's rule does."""
        if self.next_level is None:
            return self.uncorrected not in (Uncorrected.STEPS, Uncorrected.NOISE, Uncorrected.UNKNOWN)
        return self.next_level != self.level

    @property
    def latent(self) -> str:
        """How x holds its noise: "flow" if `level` is t of x = (1 - t) * x0 + t * noise, "exploding" if it is sigma of
        x = x0 + sigma * noise."""
        return "flow" if self.prediction == "flow" else "exploding"

    @property
    def output(self) -> str:
        """What the host's output is: "x0", the denoised latent, or the prediction itself, a flow's "velocity"."""
        return "velocity" if self.denoised is None else "x0"

    def prediction_of(self, x: Tensor, output: Tensor) -> Tensor:
        """The model's own prediction, from the output of the host."""
        return output if self.denoised is None else self.denoised.prediction(x, output)

    def output_of(self, x: Tensor, prediction: Tensor) -> Tensor:
        """The output the host asks for, from the model's own prediction."""
        return prediction if self.denoised is None else self.denoised.denoised(x, prediction)


@dataclass(frozen=True, eq=False)
class Answer:
    """What stands in for an evaluation that is not computed.

    Attributes:
        prediction: as the model would make it, of the shape and dtype that was stored.
        outcome: `REUSED` or `FORECAST`.
    """

    prediction: Tensor
    outcome: Outcome


class StepCache(Protocol):
    """Answers evaluations without the model. What it raises never leaves the run: the evaluation is computed then."""

    def answer(self, x: Tensor, evaluation: Evaluation) -> Answer | None:
        """What stands in for this evaluation; None to have it computed."""

    def store(self, x: Tensor, prediction: Tensor, evaluation: Evaluation) -> Tensor | None:
        """Told every evaluation that was computed; may return a prediction that the sampler is given instead."""

    def clear(self) -> None:
        """Told at the end of the run: free everything."""
