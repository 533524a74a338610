"""The samplers of the frontier over Wan's noise levels: Euler's, and the second-order ones as ComfyUI has them.

ComfyUI runs `dpmpp_2m` and `uni_pc` on a flow as if the latent were x0 + sigma noise: their corrections go by
-log(sigma), not by a flow's own log((1 - sigma)/sigma). `uni_pc` is of third order there (B1), leaves out the last
level but one, and ends at 0.001. diffusers' schedulers do the same when they are given those levels and the latent
scaled to variance 1; `tests/comfyui/test_bench_samplers.py` holds both to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from benchmarks.frontier.choices import Solver
from demo.flow import shifted
from demo.sample import sigmas

SHIFT = 5.0
# Where ComfyUI's uni_pc stops in place of 0.
_UNI_PC_END = 0.001
_UNI_PC_ORDER = 3
_TABLE = 1000


def levels_of(solver: Solver, steps: int, shift: float = SHIFT) -> list[float]:
    """Noise levels of a run from 1, one more than steps."""
    if solver == "euler":
        return [float(level) for level in sigmas(steps, shift)]
    if solver == "dpmpp_2m":
        return [*simple(steps, shift), 0.0]
    return [*simple(steps + 1, shift)[:-1], _UNI_PC_END]


def simple(steps: int, shift: float) -> list[float]:
    """Levels of ComfyUI's `simple`, which takes them from a table of a thousand; without the last, 0."""
    rows = [int(step * (_TABLE / steps)) for step in range(steps)]
    return [float(level) for level in shifted(1.0 - torch.tensor(rows) / _TABLE, shift)]


def scheduler_of(solver: Solver, steps: int, shift: float = SHIFT) -> Any:
    """A scheduler of diffusers set to the levels of `levels_of`, ready for its first step."""
    levels = levels_of(solver, steps, shift)
    if solver == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
        scheduler.set_timesteps(sigmas=levels[:-1])
        return scheduler
    as_comfyui: dict[str, Any] = {"prediction_type": "sample", "final_sigmas_type": "zero"}
    if solver == "dpmpp_2m":
        scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **as_comfyui)
    else:
        order = max(1, min(_UNI_PC_ORDER, steps - 1))
        scheduler = UniPCMultistepScheduler(solver_type="bh1", solver_order=order, **as_comfyui)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor(levels)
    scheduler.set_begin_index(0)
    return scheduler


@torch.no_grad()
def sample(
    velocity: Callable[[Tensor, float], Tensor], noise: Tensor, solver: Solver, steps: int, shift: float = SHIFT
) -> Tensor:
    """Sample from `noise`.

    Args:
        velocity: the model: latent and noise level to its prediction, noise minus x0.
        noise: at level 1.

    Returns:
        The latent x0, shape of `noise`.
    """
    scheduler = scheduler_of(solver, steps, shift)
    x = noise
    for step, timestep in enumerate(scheduler.timesteps):
        level, after = (float(scheduler.sigmas[at]) for at in (step, step + 1))
        found = velocity(x, level)
        if solver == "euler":
            x = scheduler.step(found, timestep, x, return_dict=False)[0]
        else:
            x = scheduler.step(x - level * found, timestep, x * _scale(level), return_dict=False)[0] / _scale(after)
    return x


def _scale(level: float) -> float:
    """What gives x0 + level noise the variance 1."""
    return float((1.0 + level * level) ** -0.5)
