"""A flow that is known in closed form: videos are drawn from a few Gaussians. torch alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

SHAPE = (2, 3, 1, 4, 4)
_CENTRES, _WIDTH = 5, 0.3


def start(steps: int) -> Tensor:
    """Noise, another for each number of steps."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(steps))


def noise_of(steps: int) -> Callable[[], Tensor]:
    """What a sampler adds, other noise with every call; again the same from the first call on."""
    return partial(torch.randn, SHAPE, generator=torch.Generator().manual_seed(1000 + steps))


def denoised(x: Tensor, level: float) -> Tensor:
    """The mean of the videos that x = (1 - level) x0 + level noise may be of."""
    draws = torch.Generator().manual_seed(0)
    centres = torch.randn(_CENTRES, x[0].numel(), dtype=x.dtype, generator=draws)
    keep = 1.0 - level
    variance = (keep * _WIDTH) ** 2 + level**2
    apart = x.reshape(x.shape[0], 1, -1) - keep * centres
    weights = torch.softmax(-apart.square().sum(-1) / (2 * variance), dim=-1)
    means = centres + _WIDTH**2 * keep / variance * apart
    return (weights[..., None] * means).sum(1).reshape(x.shape)
