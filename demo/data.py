"""Procedural videos: textured shapes that move and hide each other, and cameras that pan over a textured ground.

Everything is a function of a seeded generator, evaluated at continuous positions, so speeds need not be whole pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from demo.latent import rgb_to_latent
from draftattention.nodes.demo_prompts import PROMPTS


@dataclass(frozen=True)
class Look:
    """How lively the videos are, beside those the shipped model was trained on.

    Attributes:
        speed: factor on how far shapes and cameras move from frame to frame.
        size: factor on the size of shapes and of their textures.
    """

    speed: float = 1.0
    size: float = 1.0


LOOKS = {"calm": Look(), "lively": Look(speed=2.0, size=0.6)}

# Two tones each, sRGB in [0, 1]: dull grounds and bright shapes, so that a small model can tell them apart.
# Each prompt has two grounds of its own, in the order of PROMPTS: a sample shows at a glance whether it was obeyed.
_GROUNDS = torch.tensor(
    [
        [[0.10, 0.14, 0.38], [0.22, 0.30, 0.60]],
        [[0.08, 0.27, 0.15], [0.20, 0.46, 0.28]],
        [[0.29, 0.10, 0.32], [0.47, 0.24, 0.49]],
        [[0.37, 0.14, 0.10], [0.56, 0.29, 0.21]],
        [[0.23, 0.26, 0.30], [0.42, 0.46, 0.50]],
        [[0.04, 0.28, 0.33], [0.15, 0.48, 0.51]],
    ]
)
_SHAPES = torch.tensor(
    [
        [[1.00, 0.86, 0.12], [0.84, 0.44, 0.05]],
        [[0.97, 0.97, 0.97], [0.58, 0.64, 0.75]],
        [[0.95, 0.18, 0.14], [1.00, 0.66, 0.56]],
        [[0.20, 0.90, 0.95], [0.05, 0.48, 0.70]],
        [[0.62, 0.95, 0.20], [0.24, 0.58, 0.10]],
        [[0.95, 0.30, 0.85], [0.58, 0.10, 0.58]],
    ]
)


def _tones(table: torch.Tensor, index: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """Colours (B, 3, T, H, W) in [-1, 1]: row `index` (B,) of the table, `mix` (B, T, H, W) between its two tones."""
    first, second = (2 * table[index][:, tone, :, None, None, None] - 1 for tone in (0, 1))
    return torch.lerp(first.expand(-1, -1, *mix.shape[1:]), second.expand(-1, -1, *mix.shape[1:]), mix[:, None])


def _texture(
    kind: torch.Tensor, x: torch.Tensor, y: torch.Tensor, angle: torch.Tensor, period: torch.Tensor
) -> torch.Tensor:
    """Mix in [0, 1], shape (B, T, H, W): 0 stripes, 1 checker, 2 rings, 3 plain. kind, angle, period: (B,)."""
    angle, frequency = angle.view(-1, 1, 1, 1), (2 * math.pi / period).view(-1, 1, 1, 1)
    u = (x * angle.cos() + y * angle.sin()) * frequency
    v = (y * angle.cos() - x * angle.sin()) * frequency
    radius = (x.square() + y.square()).sqrt() * frequency
    waves = torch.stack((u.sin(), 1.5 * u.sin() * v.sin(), radius.cos(), torch.full_like(u, -4.0)), 1)
    wave = waves.gather(1, kind.view(-1, 1, 1, 1, 1).expand(-1, 1, *u.shape[1:]))[:, 0]
    return torch.sigmoid(5 * wave)


def video_batch(
    generator: torch.Generator, batch: int, frames: int, height: int, width: int, look: Look = LOOKS["calm"]
) -> tuple[torch.Tensor, list[str]]:
    """Random videos, float32 (B, 3, T, H, W) in [-1, 1], and the prompt of each.

    `shapes`: 2 to 4 moving shapes on a still blue or green ground; `pan`: the camera moves over a plum or brown ground
    with up to 2 shapes lying on it; `both`: moving shapes and a moving camera over grey or teal. Sizes and speeds are
    in latent pixels and grow slowly with the frame. The generator must be on the CPU; its state decides everything.
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    def choice(count: int) -> torch.Tensor:
        return torch.randint(count, (batch,), generator=generator)

    def velocity(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
        speed, direction = look.speed * uniform(low, high), uniform(0, 2 * math.pi)
        return speed * direction.cos(), speed * direction.sin()

    size = min(2.0, math.sqrt(min(height, width) / 16))
    t = (torch.arange(frames, dtype=torch.float32) - (frames - 1) / 2).view(1, -1, 1, 1)
    y0 = torch.arange(height, dtype=torch.float32).view(1, 1, -1, 1) + 0.5
    x0 = torch.arange(width, dtype=torch.float32).view(1, 1, 1, -1) + 0.5
    shape = (batch, frames, height, width)

    def moved(
        x: torch.Tensor, y: torch.Tensor, vx: torch.Tensor, vy: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, y, vx, vy = (value.view(-1, 1, 1, 1) for value in (x, y, vx, vy))
        return (x0 - x - vx * t).expand(shape), (y0 - y - vy * t).expand(shape)

    scene = choice(len(PROMPTS))
    panning, shapes_move = scene != 0, scene != 1
    camera_x, camera_y = (v * panning for v in velocity(0.6 * size, 2.0 * size))
    ground_x, ground_y = moved(uniform(0, width), uniform(0, height), -camera_x, -camera_y)
    mix = _texture(choice(3), ground_x, ground_y, uniform(0, math.pi), look.size * uniform(6 * size, 11 * size))
    video = _tones(_GROUNDS, 2 * scene + choice(2), mix)

    crowd = 2 + round(size)
    count = torch.where(shapes_move, 2 + choice(crowd - 1), choice(3))
    for index in range(crowd):
        vx, vy = velocity(0.4 * size, 2.2 * size)
        x, y = moved(uniform(0, width), uniform(0, height), vx * shapes_move - camera_x, vy * shapes_move - camera_y)
        radius = (look.size * uniform(2.6 * size, 4.8 * size)).view(-1, 1, 1, 1)
        aspect = uniform(0.75, 1.33).view(-1, 1, 1, 1)
        disc = (x.square() + y.square()).sqrt()
        box = torch.maximum(x.abs() * aspect, y.abs() / aspect) * 1.1
        diamond = (x.abs() + y.abs()) * 0.8
        outlines = torch.stack((disc, box, diamond), 1)
        form = choice(3).view(-1, 1, 1, 1, 1).expand(-1, 1, *shape[1:])
        cover = torch.sigmoid(4 * (radius - outlines.gather(1, form)[:, 0]))
        cover = cover * (index < count).view(-1, 1, 1, 1)
        mix = _texture(choice(4), x, y, uniform(0, math.pi), look.size * uniform(4.5 * size, 6 * size))
        video = torch.lerp(video, _tones(_SHAPES, choice(len(_SHAPES)), mix), cover[:, None])
    return video, [PROMPTS[index] for index in scene.tolist()]


def latent_batch(
    generator: torch.Generator, batch: int, grid: tuple[int, int, int], look: Look = LOOKS["calm"]
) -> tuple[torch.Tensor, list[str]]:
    """Latents (B, 16, T, 2 H, 2 W) of random videos for a token grid (T, H, W), and the prompt of each."""
    video, prompts = video_batch(generator, batch, grid[0], 2 * grid[1], 2 * grid[2], look)
    return rgb_to_latent(video), prompts
