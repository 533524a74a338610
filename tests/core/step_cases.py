"""A small host for step caches: smooth models, samplers, and the questions a host asks along the way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.run.evaluation import Branch, Denoised, Evaluation, Uncorrected
from draftattention.draftattn_core.run.step_cache import Decision, Reason, RunStepCache, StepCacheSettings

SHAPE = (1, 4, 3, 4, 6)
Model = Callable[[Tensor, float], Tensor]
# (latent, noise level, index of the step, whether it is the last) -> what drives the sampler
Guided = Callable[[Tensor, float, int, bool], Tensor]

# Rules that skip whatever may be skipped, so that a test decides what may.
EASY = StepCacheSettings("easycache", 1e9, 2, max_skips=None)
FORECAST = StepCacheSettings("forecast", 1e9, 2, max_skips=None, max_reach=1e9)
BOTH = pytest.mark.parametrize("settings", [EASY, FORECAST], ids=["easycache", "forecast"])


def noise(seed: int, shape: Sequence[int] = SHAPE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth_model(seed: int, scale: float = 1.0) -> Model:
    """A velocity that bends with latent and noise level: two layers of random weights over the 4 channels."""
    generator = torch.Generator().manual_seed(100 + seed)
    first, second = torch.randn(2, 4, 4, generator=generator) / 2
    shift, slope = torch.randn(2, 4, 1, 1, 1, generator=generator)

    def velocity(x: Tensor, s: float) -> Tensor:
        hidden = torch.tanh(torch.einsum("oc,bcthw->bothw", first, x) + shift + 3.0 * s * s * slope)
        return scale * (torch.einsum("oc,bcthw->bothw", second, hidden) + 0.5 * x)

    return velocity


def levels(steps: int, shift: float = 5.0) -> list[float]:
    even = [1 - i / steps for i in range(steps + 1)]
    return [shift * u / (1 + (shift - 1) * u) for u in even]


@dataclass
class Host:
    """Asks a step cache as a run does, and counts what the model is asked.

    Attributes:
        keys: branches of a call, stacked in its batch. conditional: index of the condition itself among them.
        calls: noise levels at which the model was called.
        waiting: told before the model is called; may raise.
        schedule: noise levels of a sampler whose step is told; empty for a host that tells none.
        euler: whether it takes plain Euler steps along the schedule. uncorrected: what it says if it does not.
    """

    cache: RunStepCache
    keys: tuple[Hashable, ...] = ("cond",)
    conditional: int | None = 0
    steps: int | None = 20
    expert: Hashable = "model"
    window: Hashable = None
    prediction: str = "flow"
    denoised: Denoised | None = None
    streams: tuple[int, ...] = ()
    progress: float | None = None
    schedule: Sequence[float] = ()
    euler: bool = True
    uncorrected: Uncorrected = Uncorrected.UNKNOWN

    def __post_init__(self) -> None:
        self.calls: list[float] = []

    def of(self, *keys: Hashable, conditional: int | None, **changes: object) -> Host:
        """The same run, asked by other branches."""
        other = replace(self, keys=keys, conditional=conditional, **changes)  # type: ignore[arg-type]
        other.calls = self.calls
        return other

    def evaluation(self, x: Tensor, s: float, is_last: bool) -> Evaluation:
        size = x.shape[0] // len(self.keys)
        at = self.schedule.index(s) if self.schedule else 0
        return Evaluation(
            step=at,
            sampler_step=at,
            steps=self.steps,
            progress=1 - s if self.progress is None else self.progress,
            level=s,
            prediction=self.prediction,
            denoised=self.denoised,
            branches=tuple(Branch(key, slice(i * size, (i + 1) * size)) for i, key in enumerate(self.keys)),
            conditional=self.conditional,
            window=self.window,
            expert=self.expert,
            device=x.device,
            is_last=is_last,
            streams=self.streams,
            next_level=self.schedule[at + 1] if self.schedule and self.euler else None,
            uncorrected=self.uncorrected,
        )

    def ask(self, model: Model, x: Tensor, s: float, is_last: bool = False) -> Tensor:
        evaluation = self.evaluation(x, s, is_last)
        answer = self.cache.answer(x, evaluation)
        if answer is not None:
            return answer.prediction
        out = model(x, s)
        self.calls.append(s)
        other = self.cache.store(x, out, evaluation)
        return out if other is None else other


def euler(guided: Guided, x: Tensor, schedule: Sequence[float]) -> list[Tensor]:
    """Latents of the path, the first one left out."""
    path = []
    for i, (s, following) in enumerate(zip(schedule, schedule[1:])):
        x = x + (following - s) * guided(x, s, i, i == len(schedule) - 2)
        path.append(x)
    return path


def run(host: Host, model: Model, schedule: Sequence[float], seed: int = 0, shape: Sequence[int] = SHAPE) -> Tensor:
    """An Euler run without guidance; returns its last latent."""
    return euler(lambda x, s, _, is_last: host.ask(model, x, s, is_last), noise(seed, shape), schedule)[-1]


def outcomes(decisions: Sequence[Decision]) -> str:
    """One letter per decision: C computed, r reused, f forecast."""
    return "".join({"computed": "C", "reused": "r", "forecast": "f"}[str(d.outcome)] for d in decisions)


def reasons(cache: RunStepCache) -> list[Reason]:
    return [decision.reason for decision in cache.decisions]


def walk(host: Host, model: Model, at: Sequence[float]) -> None:
    """Ask at these noise levels, each time with a latent of its own."""
    for i, s in enumerate(at):
        host.ask(model, noise(30 + i), s)


def never(x: Tensor, s: float) -> Tensor:
    """A model that must not be called."""
    raise AssertionError("the model was called")
