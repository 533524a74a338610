"""How far a clip is from its reference: PSNR, SSIM and flicker of (frames, H, W, C) float clips in 0..data_range.

A sparse run and its dense twin share seed and settings, so these are distances to what the model would have made, not
scores of beauty: two exact attention kernels already differ by some 30 dB after a full run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 4 or a.shape != b.shape:
        raise ValueError(
            f"two clips of one shape (frames, H, W, channels) are needed, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.numel() == 0:
        raise ValueError("the clips are empty")
    return a.detach().float(), b.detach().to(a.device).float()


def psnr(a: Tensor, b: Tensor, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB over the whole clip (one mean squared error, not a mean of dBs); inf if equal.

    Raises:
        ValueError: if the clips are empty or differ in shape.
    """
    a, b = _checked(a, b)
    error = float((a - b).double().square().mean())
    return math.inf if error == 0.0 else 10.0 * math.log10(data_range**2 / error)


def ssim(a: Tensor, b: Tensor, data_range: float = 1.0) -> float:
    """Structural similarity, mean over frames, channels and places; 1 if equal.

    Z. Wang et al., IEEE TIP 13(4), 2004: Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, only places
    where the whole window fits. On pictures smaller than that the window shrinks to the largest odd size that fits.

    Raises:
        ValueError: if the clips are empty or differ in shape.
    """
    a, b = _checked(a, b)
    frames, height, width, channels = a.shape
    size = min(SSIM_WINDOW, height, width)
    size -= 1 - size % 2
    offsets = torch.arange(size, device=a.device, dtype=a.dtype) - size // 2
    line = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    line = line / line.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def local_mean(x: Tensor) -> Tensor:
        return conv2d(conv2d(x, line.view(1, 1, size, 1)), line.view(1, 1, 1, size))

    total = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = (z.permute(2, 0, 1).unsqueeze(1) for z in (x, y))
        mean_x, mean_y = local_mean(x), local_mean(y)
        var_x = local_mean(x * x) - mean_x.square()
        var_y = local_mean(y * y) - mean_y.square()
        cov = local_mean(x * y) - mean_x * mean_y
        score = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
        score = score / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
        total += float(score.double().mean())
    return total / frames


def flicker(a: Tensor, reference: Tensor) -> float:
    """Change from frame to frame that the reference does not have: mean |(a[t+1] - a[t]) - (r[t+1] - r[t])|.

    In units of pixel value. A constant difference between the clips (a shifted colour, say) does not count, a
    difference that comes and goes does; 0 if both clips move alike.

    Raises:
        ValueError: if the clips are empty, differ in shape or have fewer than two frames.
    """
    a, reference = _checked(a, reference)
    if len(a) < 2:
        raise ValueError("flicker needs clips of at least two frames")
    difference = a - reference
    return float((difference[1:] - difference[:-1]).abs().double().mean())
