"""Samplers that add noise, as ComfyUI has them on a flow: `euler_ancestral` and `dpmpp_2m_sde`, both at eta 1.

`tests/comfyui/test_bench_samplers.py` holds them to the host. Noise is drawn anew for every step; the host's
`dpmpp_2m_sde` takes it from a Brownian tree, whose increments over a run's own steps are as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from benchmarks.frontier.samplers import simple
from demo.flow import shifted

NoisySolver = Literal["euler_ancestral", "dpmpp_2m_sde"]
Velocity = Callable[[Tensor, float], Tensor]
Draw = Callable[[], Tensor]

# How far below 1 the host begins where it goes by the signal-to-noise ratio, which is none at 1.
_OFFSET = 1e-4


def noisy_levels(solver: NoisySolver, steps: int, shift: float) -> list[float]:
    """Noise levels of a run to 0, one more than steps."""
    levels = [*simple(steps, shift), 0.0]
    if solver == "dpmpp_2m_sde":
        levels[0] = float(shifted(torch.tensor(1.0 - _OFFSET, dtype=torch.float64), shift))
    return levels


@torch.no_grad()
def sample_noisy(
    velocity: Velocity, noise: Tensor, draw: Draw, solver: NoisySolver, steps: int, shift: float
) -> Tensor:
    """Sample from `noise`.

    Args:
        velocity: the model: latent and noise level to its prediction, noise minus x0.
        noise: at level 1.
        draw: standard normal noise in the shape of `noise`, other noise with every call.

    Returns:
        The latent x0, shape of `noise`.
    """
    levels = noisy_levels(solver, steps, shift)
    return (_ancestral if solver == "euler_ancestral" else _sde)(velocity, noise, draw, levels)


def _ancestral(velocity: Velocity, x: Tensor, draw: Draw, levels: list[float]) -> Tensor:
    for level, after in zip(levels, levels[1:]):
        x0 = x - level * velocity(x, level)
        if after == 0.0:
            return x0
        down = after * after / level
        kept = (1.0 - after) / (1.0 - down)
        x = kept * (x0 + down / level * (x - x0)) + math.sqrt(after**2 - (down * kept) ** 2) * draw()
    return x


def _sde(velocity: Velocity, x: Tensor, draw: Draw, levels: list[float]) -> Tensor:
    """Second order by the midpoint rule, in half the log of the signal-to-noise ratio."""
    before: Tensor | None = None
    last = 0.0
    for level, after in zip(levels, levels[1:]):
        x0 = x - level * velocity(x, level)
        if after == 0.0:
            return x0
        step = math.log((1.0 - after) / after) - math.log((1.0 - level) / level)
        gain = (1.0 - after) * -math.expm1(-2.0 * step)
        x = after / level * math.exp(-step) * x + gain * x0
        if before is not None:
            x = x + 0.5 * gain * step / last * (x0 - before)
        x = x + after * math.sqrt(-math.expm1(-2.0 * step)) * draw()
        before, last = x0, step
    return x
