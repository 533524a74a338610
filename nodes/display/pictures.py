"""Between ComfyUI's IMAGE and LATENT and the charts' frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...draftattn_core.views.charts.clips import Frames, as_frames


def to_image(picture: Image.Image | Frames) -> Tensor:
    """IMAGE (frames, H, W, 3) float in 0..1 of a PIL picture or of uint8 frames."""
    array = np.array(picture)
    return torch.from_numpy(array if array.ndim == 4 else array[None]).float() / 255.0


def from_image(image: Tensor) -> Frames:
    """uint8 frames of an IMAGE."""
    return as_frames(image.detach().float().cpu().numpy())


def video_of(samples: Tensor) -> Tensor:
    """First video of latent samples (B, C, T, H, W), or of a batch of pictures (B, C, H, W), as (T, H, W, C) float32.

    Raises:
        ValueError: for other shapes (audio, packed streams).
    """
    if getattr(samples, "is_nested", False) or not isinstance(samples, Tensor) or samples.dim() not in (4, 5):
        shape = "several streams" if not isinstance(samples, Tensor) or samples.is_nested else str(tuple(samples.shape))
        raise ValueError(f"a latent of pictures or of one video is needed, got {shape}")
    video = samples[0].permute(1, 2, 3, 0) if samples.dim() == 5 else samples.permute(0, 2, 3, 1)
    return video.detach().float().cpu()


def latent_preview(samples: Tensor, latent_format: Any = None) -> Frames:
    """uint8 frames of a LATENT's samples without a VAE.

    With the model's `latent_format` these are the colours of ComfyUI's own preview; without, the three strongest
    principal components of the channels, stretched to the full range.
    """
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if factors is not None and len(factors) == samples.shape[1]:
        video = video_of(latent_format.process_in(samples.detach().float().cpu()))
        rgb = video @ torch.tensor(factors, dtype=torch.float32)
        bias = getattr(latent_format, "latent_rgb_factors_bias", None)
        if bias is not None:
            rgb = rgb + torch.tensor(bias, dtype=torch.float32)
        return as_frames(((rgb + 1.0) / 2.0).numpy())
    return as_frames(Components(video_of(samples))(video_of(samples)).numpy())


class Components:
    """The three strongest principal components of a clip's channels, as colours in 0..1; fixed by the first clip."""

    def __init__(self, clip: Tensor) -> None:
        flat = clip.flatten(0, 2)
        self.mean = flat.mean(0)
        centred = flat - self.mean
        _, vectors = torch.linalg.eigh(centred.t() @ centred)
        vectors = vectors.flip(1)[:, :3]
        # The sign of an eigenvector is arbitrary: let its largest entry be positive.
        signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        self.vectors = vectors * signs
        colours = centred @ self.vectors
        self.low, self.high = colours.amin(0), colours.amax(0)

    def __call__(self, clip: Tensor) -> Tensor:
        """(T, H, W, 3) of a clip (T, H, W, C)."""
        colours: Tensor = ((clip - self.mean) @ self.vectors - self.low) / (self.high - self.low).clamp_min(1e-6)
        if colours.shape[-1] < 3:
            colours = colours[..., :1].expand(*colours.shape[:-1], 3)
        return colours.clamp(0, 1)
