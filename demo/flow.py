"""Flow matching as in Wan: x_sigma = (1 - sigma) x0 + sigma noise, velocity = noise - x0, timestep = 1000 sigma."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel

from demo.data import LOOKS, Look, latent_batch
from demo.latent import RGB_FACTORS
from draftattention.nodes.demo_prompts import prompt_embedding


def shifted(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Noise level of a uniform position u in [0, 1] under the time-step shift of SD3 and Wan."""
    return shift * u / (1 + (shift - 1) * u)


def predict_velocity(
    model: WanTransformer3DModel, x: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """Velocity, shape of x (B, 16, T, H, W), for noise levels (B,) and text embeddings (B, tokens, dim)."""
    return model(x, 1000 * sigma, text, return_dict=False)[0]


def split_error(error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean square of an error (B, 16, T, H, W) per dimension: in the 3 directions a preview shows, and in the other 13.

    The latents of the demo carry signal in the first 3 only; what happens in the rest is pure noise prediction.
    """
    basis = torch.linalg.qr(RGB_FACTORS.to(error)).Q
    seen = torch.einsum("bcthw,ck->bkthw", error, basis).square().sum(1)
    return seen.mean() / 3, (error.square().sum(1) - seen).mean() / 13


@torch.no_grad()
def visible_velocity_error(
    model: WanTransformer3DModel,
    sigma: float,
    *,
    grid: tuple[int, int, int] = (5, 12, 16),
    samples: int = 8,
    seed: int = 1,
    look: Look = LOOKS["calm"],
) -> tuple[float, float]:
    """Visible velocity error on videos outside training: (of the model, of a model that sees nothing).

    The second answers the mean velocity everywhere, so it is the variance of the true velocity. Both are mean squares
    per dimension over `samples` videos of a token grid at noise level sigma.
    """
    generator = torch.Generator().manual_seed((1 << 40) + seed)
    x0, prompts = latent_batch(generator, samples, grid, look)
    noise = torch.randn(x0.shape, generator=generator)
    x = (1 - sigma) * x0 + sigma * noise
    text = torch.cat([prompt_embedding(prompt) for prompt in prompts])
    device = next(model.parameters()).device
    velocity = noise - x0
    found = torch.cat(
        [
            predict_velocity(model, *(part.to(device) for part in parts)).cpu()
            for parts in zip(x.split(2), torch.full((samples,), sigma).split(2), text.split(2), strict=True)
        ]
    )
    blind = velocity - velocity.mean((0, 2, 3, 4), keepdim=True)
    return split_error(found - velocity)[0].item(), split_error(blind)[0].item()
