"""Where in a sampling run a model evaluation stands, read from the timesteps the model is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...run.evaluation import Uncorrected

# How far, as a share of the largest timestep, an evaluation may lie from every listed timestep and still belong to one.
_NEAR = 0.01
# The scheduler of diffusers whose steps are x + v (t' - t), by name: diffusers is not asked for here.
EULER = "FlowMatchEulerDiscreteScheduler"
# Parts of the names of those that add noise at every step.
_RENOISING = ("Ancestral", "LCM", "SASolver", "DDPM")


@dataclass(frozen=True)
class Tick:
    """One model evaluation.

    Attributes:
        step: index of its noise level in the run, from 0, in order of first appearance.
        progress: 0 at the noisiest end of sampling, towards 1 at the clean end.
        new_run: whether a run begins with it.
        listed: False if timesteps are known and this one is not among them.
        sampler_step: index of its timestep in the list, `step` where there is none.
        steps: timesteps in the list, or the number of steps that was given; None if neither is known.
        level: noise level t in 0..1, 1 for pure noise.
        next_level: where a plain Euler step of the scheduler leads; None if it takes another kind of step, or none is
            known.
        uncorrected: why it is None.
        uneven: whether tokens stand at several noise levels, beside those of a given frame at 0 (diffusion forcing).
    """

    step: int
    progress: float
    new_run: bool
    listed: bool = True
    sampler_step: int = 0
    steps: int | None = None
    level: float = 1.0
    next_level: float | None = None
    uncorrected: Uncorrected = Uncorrected.UNKNOWN
    uneven: bool = False


class RunClock:
    """Turns timesteps (high = noisy) into steps, progress and the boundaries between runs.

    Progress of an evaluation is, by what is known:
        scheduler or timesteps: its timestep's index in the list over the list's length. A run that enters the list in
            the middle (video to video, the second expert of Wan 2.2) keeps its place in it.
        steps: how many noise levels came before in this run, over `steps`.
        nothing: 1 - timestep / 1000, the noise level as it stands. Samplers with a time shift spend most steps at high
            noise, so a schedule made for steps comes late then.

    A run begins at the first evaluation, whenever the timestep goes back up, and when the scheduler's `set_timesteps`
    has been called since, unless it has done steps by then and the evaluation is the next one.

    Args:
        scheduler: a diffusers scheduler; its `timesteps` (and `step_index`, which tells apart timesteps that a model's
            half precision makes equal) are read at every evaluation.
        timesteps: the list itself, noisiest first.
        steps: number of noise levels of a run.

    Raises:
        ValueError: if more than one source is given, `timesteps` is empty or `steps` is less than 1.
    """

    def __init__(
        self, scheduler: Any = None, timesteps: Sequence[float] | Tensor | None = None, steps: int | None = None
    ) -> None:
        if sum(source is not None for source in (scheduler, timesteps, steps)) > 1:
            raise ValueError("pass one of scheduler, timesteps and steps: each of them says how long a run is")
        if scheduler is not None and not hasattr(scheduler, "timesteps"):
            raise ValueError(f"{type(scheduler).__name__} has no timesteps: pass the pipeline's scheduler")
        if steps is not None and steps < 1:
            raise ValueError(f"a run has at least one step, got {steps}")
        self._scheduler = scheduler
        self._source: Any = timesteps
        self._levels = [] if timesteps is None else _as_list(timesteps)
        if timesteps is not None and not self._levels:
            raise ValueError("timesteps is empty")
        self._sigmas: list[float] = []
        self._steps = steps
        self._seen: dict[float, int] = {}
        self._last: tuple[float, int | None] | None = None

    @property
    def knows_length(self) -> bool:
        """Whether progress follows steps rather than the bare noise level."""
        return self._steps is not None or self._scheduler is not None or bool(self._levels)

    @property
    def steps_ahead(self) -> bool:
        """Whether the scheduler has yet to do a step, and stands where the last evaluation left it.

        So it is after a run that was cut short without an error; when another model goes on with the run, the
        scheduler has moved on.
        """
        done = getattr(self._scheduler, "step_index", None)
        if not isinstance(done, int) or self._last is None or self._last[1] is None:
            return False
        return self._scheduler.timesteps is self._source and self._last[1] <= done <= self._last[1] + 1 < len(
            self._levels
        )

    def restart(self) -> None:
        """The next evaluation begins a run."""
        self._last = None

    def tick(self, timestep: Tensor | float) -> Tick:
        """Read one evaluation; a timestep per token (Wan 2.2 5B) counts with its noisiest token."""
        timestep = torch.as_tensor(timestep)
        value = float(timestep.max())
        rescheduled = self._read_scheduler()
        index = self._index(value, timestep.dtype)

        fresh = rescheduled and getattr(self._scheduler, "step_index", 0) is None
        new_run = self._last is None or fresh or self._begins_run(self._last, value, index, rescheduled)
        if new_run:
            self._seen.clear()
        self._last = (value, index)
        level = value if index is None else self._levels[index]
        step = self._seen.setdefault(level, len(self._seen))
        if index is not None:
            progress = index / len(self._levels)
        elif self._steps is not None:
            progress = step / self._steps
        else:
            progress = 1.0 - value / 1000.0
        return Tick(
            step,
            min(1.0, max(0.0, progress)),
            new_run,
            index is not None or not self._levels,
            step if index is None else index,
            len(self._levels) or self._steps,
            self._level(value, index),
            self._next_level(index),
            self._uncorrected(),
            timestep.dim() > 1 and bool(((timestep != 0) & (timestep != timestep.max())).any()),
        )

    def _level(self, value: float, index: int | None) -> float:
        """t of an evaluation: the scheduler's own sigma where it has one, for timesteps may be rounded."""
        if index is not None and index < len(self._sigmas) and 0.0 <= self._sigmas[index] <= 1.0:
            return self._sigmas[index]
        config = getattr(self._scheduler, "config", None)
        return value / float(getattr(config, "num_train_timesteps", None) or 1000.0)

    def _next_level(self, index: int | None) -> float | None:
        euler = self._uncorrected() is Uncorrected.UNKNOWN
        return self._sigmas[index + 1] if euler and index is not None and index + 1 < len(self._sigmas) else None

    def _uncorrected(self) -> Uncorrected:
        """What a scheduler says against corrections; that nothing is known if it says nothing."""
        if self._scheduler is None:
            return Uncorrected.UNKNOWN
        config = getattr(self._scheduler, "config", None)
        name = type(self._scheduler).__name__
        # DPM-Solver's stochastic kinds are told by a setting; Euler's scheduler has a switch.
        noisy = getattr(config, "stochastic_sampling", False) or "sde" in str(getattr(config, "algorithm_type", ""))
        if noisy or any(part in name for part in _RENOISING):
            return Uncorrected.NOISE
        return Uncorrected.UNKNOWN if name == EULER else Uncorrected.STEPS

    def _read_scheduler(self) -> bool:
        if self._scheduler is None or self._scheduler.timesteps is self._source:
            return False
        self._source = self._scheduler.timesteps
        self._levels = [] if self._source is None else _as_list(self._source)
        sigmas = getattr(self._scheduler, "sigmas", None)
        # One more than there are timesteps: the last is the end of sampling.
        self._sigmas = _as_list(sigmas) if sigmas is not None and len(sigmas) == len(self._levels) + 1 else []
        return True

    def _index(self, value: float, dtype: torch.dtype) -> int | None:
        if not self._levels:
            return None
        distances = [abs(level - value) for level in self._levels]
        nearest = min(range(len(distances)), key=distances.__getitem__)
        if distances[nearest] > _NEAR * max(self._levels):
            return None
        # HunyuanVideo's pipelines round timesteps to the model's dtype: in bfloat16 neighbours fall together.
        rounding = 0.5 * torch.finfo(dtype).eps * abs(value) if dtype.is_floating_point else 0.0
        current = getattr(self._scheduler, "step_index", None)
        if isinstance(current, int) and 0 <= current < len(distances):
            nearest = current if distances[current] <= max(distances[nearest], rounding) else nearest
        return nearest

    @staticmethod
    def _begins_run(last: tuple[float, int | None], value: float, index: int | None, rescheduled: bool) -> bool:
        last_value, last_index = last
        if index is not None and last_index is not None:
            return index < last_index or (rescheduled and index != last_index + 1)
        return value > last_value or (rescheduled and value == last_value)


def _as_list(timesteps: Sequence[float] | Tensor) -> list[float]:
    return [float(t) for t in (timesteps.flatten().tolist() if isinstance(timesteps, Tensor) else timesteps)]
