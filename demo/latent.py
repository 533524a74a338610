"""Latents without a VAE: the 16 channels are chosen so that Wan's latent-to-RGB preview factors show the picture."""

from __future__ import annotations

import numpy as np
import torch

# Preview factors and normalisation constants of the Wan 2.1 latent space, numbers as published in ComfyUI
# (comfy/latent_formats.py, class Wan21) and, mean and std, in the VAE of Wan 2.1 itself.
RGB_FACTORS = torch.tensor(
    [
        [-0.1299, -0.1692, 0.2932],
        [0.0671, 0.0406, 0.0442],
        [0.3568, 0.2548, 0.1747],
        [0.0372, 0.2344, 0.1420],
        [0.0313, 0.0189, -0.0328],
        [0.0296, -0.0956, -0.0665],
        [-0.3477, -0.4059, -0.2925],
        [0.0166, 0.1902, 0.1975],
        [-0.0412, 0.0267, -0.1364],
        [-0.1293, 0.0740, 0.1636],
        [0.0680, 0.3019, 0.1128],
        [0.0032, 0.0581, 0.0639],
        [-0.1251, 0.0927, 0.1699],
        [0.0060, -0.0633, 0.0005],
        [0.3477, 0.2275, 0.2950],
        [0.1984, 0.0913, 0.1861],
    ]
)
RGB_BIAS = torch.tensor([-0.1835, -0.0868, -0.3360])
WAN_MEAN = torch.tensor(
    [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508]
    + [0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921]
)
WAN_STD = torch.tensor(
    [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743]
    + [3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160]
)


def rgb_to_latent(rgb: torch.Tensor) -> torch.Tensor:
    """Latent (B, 16, T, H, W) of a video (B, 3, T, H, W) in [-1, 1]: the smallest one whose preview is that video."""
    inverse = torch.linalg.pinv(RGB_FACTORS).to(rgb)
    return torch.einsum("bcthw,cd->bdthw", rgb - RGB_BIAS.to(rgb).view(3, 1, 1, 1), inverse)


def latent_to_rgb_float(x0: torch.Tensor) -> torch.Tensor:
    """Preview (B, 3, T, H, W) of a latent (B, 16, T, H, W), nominally in [-1, 1], not clipped."""
    return torch.einsum("bdthw,dc->bcthw", x0, RGB_FACTORS.to(x0)) + RGB_BIAS.to(x0).view(3, 1, 1, 1)


def latent_to_rgb(x0: torch.Tensor) -> np.ndarray:
    """Frames, uint8 of shape (B, T, H, W, 3), of a latent (B, 16, T, H, W): what ComfyUI's preview shows."""
    rgb = latent_to_rgb_float(x0.detach().float().cpu())
    return ((rgb + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()


def wan_process_out_inverse(samples: torch.Tensor) -> torch.Tensor:
    """Model-space latent of what ComfyUI's KSampler returns and SaveLatent writes.

    KSampler ends with `process_latent_out`, which multiplies (B, 16, T, H, W) by the std of the Wan latent space and
    adds its mean, for a VAE that is not there in the demo.
    """
    shape = (16, 1, 1, 1)
    return (samples - WAN_MEAN.to(samples).view(shape)) / WAN_STD.to(samples).view(shape)
