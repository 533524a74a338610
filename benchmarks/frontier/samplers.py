"""The samplers of the frontier, as diffusers keeps them, all over the noise levels that Wan samples at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from benchmarks.frontier.methods import Solver
from demo.sample import sigmas

SHIFT = 5.0
# ComfyUI's `uni_pc` and `dpmpp_2m` are of second order.
_SECOND_ORDER: dict[str, Any] = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": SHIFT,
    "solver_order": 2,
    "lower_order_final": True,
}


def scheduler_of(solver: Solver, steps: int) -> Any:
    """A scheduler of diffusers set to the levels of `demo.sample.sigmas`, ready for its first step."""
    if solver == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
        scheduler.set_timesteps(sigmas=sigmas(steps, SHIFT)[:-1].tolist())
    elif solver == "dpmpp_2m":
        scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", final_sigmas_type="zero", **_SECOND_ORDER)
        scheduler.set_timesteps(steps)
    else:
        scheduler = UniPCMultistepScheduler(**_SECOND_ORDER)
        scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def sample(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, solver: Solver, steps: int) -> Tensor:
    """Sample from `noise`.

    Args:
        velocity: the model: latent and noise level to its prediction, noise minus x0.
        noise: at level 1.

    Returns:
        The latent x0, shape of `noise`.
    """
    scheduler = scheduler_of(solver, steps)
    x = noise
    for step, timestep in enumerate(scheduler.timesteps):
        found = velocity(x, float(scheduler.sigmas[step]))
        x = scheduler.step(found, timestep, x, return_dict=False)[0]
    return x
