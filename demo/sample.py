"""Euler sampling of the tiny model with classifier-free guidance, on the diffusers class.

`python -m demo.sample` writes a contact sheet of 8 samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from tqdm import tqdm

from demo import checkpoint
from demo.flow import predict_velocity, shifted
from demo.latent import latent_to_rgb
from demo.pictures import contact_sheet
from draftattention.nodes.demo_prompts import PROMPTS, prompt_embedding

DEMO_GRID = (9, 24, 40)

# callback(step index, number of steps, sigma at the start of the step, current estimate of x0)
Callback = Callable[[int, int, float, torch.Tensor], None]


def sigmas(steps: int, shift: float) -> torch.Tensor:
    """Noise levels from 1 to 0, shape (steps + 1,): even, then shifted, as ComfyUI's `simple` schedule for Wan."""
    return shifted(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), shift).to(torch.float32)


def initial_noise(grid: tuple[int, int, int], seed: int) -> torch.Tensor:
    """Standard normal noise (1, 16, T, 2 H, 2 W) for a token grid (T, H, W), drawn on the CPU from a seed."""
    shape = (1, 16, grid[0], 2 * grid[1], 2 * grid[2])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sample(
    model: WanTransformer3DModel,
    prompt: str = "both",
    grid: tuple[int, int, int] = DEMO_GRID,
    *,
    steps: int = 20,
    seed: int = 0,
    shift: float = 5.0,
    cfg: float = 2.0,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Sample one video; returns the latent x0, float32 (1, 16, T, 2 H, 2 W), on the model's device.

    With cfg = 1 the unconditional pass is skipped; otherwise conditional and unconditional run as two calls per step,
    in this order. Raises ValueError for an unknown prompt or fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: at least 1 is needed")
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    text, empty = (prompt_embedding(name).to(device, dtype) for name in (prompt, ""))
    x = initial_noise(grid, seed).to(device)
    levels = sigmas(steps, shift).tolist()

    def velocity(sigma: float, embedding: torch.Tensor) -> torch.Tensor:
        return predict_velocity(model, x.to(dtype), torch.tensor([sigma], device=device), embedding).float()

    for step, (sigma, following) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        direction = velocity(sigma, text)
        if cfg != 1.0:
            without = velocity(sigma, empty)
            direction = without + cfg * (direction - without)
        if callback is not None:
            callback(step, steps, sigma, x - sigma * direction)
        x = x + (following - sigma) * direction
    return x


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Contact sheet of samples: rows are samples, columns are frames.")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("contact_sheet.png"))
    parser.add_argument("--checkpoint", type=Path, default=checkpoint.CHECKPOINT)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--grid", type=int, nargs=3, default=DEMO_GRID, metavar=("T", "H", "W"), help="in tokens")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float, default=5.0)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first sample; the others count on")
    parser.add_argument("--scale", type=int, default=2, help="picture pixels per latent pixel")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    model = checkpoint.load(arguments.checkpoint, device=arguments.device)
    videos, labels = [], []
    with tqdm(total=arguments.samples * arguments.steps, unit="step") as bar:
        for index in range(arguments.samples):
            prompt, seed = PROMPTS[index % len(PROMPTS)], arguments.seed + index
            x0 = sample(
                model,
                prompt,
                tuple(arguments.grid),
                steps=arguments.steps,
                seed=seed,
                shift=arguments.shift,
                cfg=arguments.cfg,
                callback=lambda *_: bar.update(),
            )
            videos.append(latent_to_rgb(x0)[0])
            labels.append(f"{prompt}\nseed {seed}")
    contact_sheet(videos, labels, arguments.out, scale=arguments.scale)


if __name__ == "__main__":
    main()
