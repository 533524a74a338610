"""Compare two clips: figures, words and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...draftattn_core.views.charts import difference, side_by_side
from ...draftattn_core.views.charts.clips import Frames
from ...draftattn_core.views.metrics import flicker, psnr, ssim
from ..words import LINES, Joined, Words
from .pictures import Components, from_image, latent_preview, video_of


@dataclass(frozen=True)
class Comparison:
    """Figures of `clip` against `reference`.

    Attributes:
        psnr_db, ssim: see `metrics`.
        flicker: see `metrics.flicker`, as a share of the value range; None for a single frame.
        what: what was compared, in words.
        frames: side by side, uint8.
        clips: reference and clip as they are shown, uint8.
    """

    psnr_db: float
    ssim: float
    flicker: float | None
    what: str
    frames: Frames
    clips: tuple[Frames, Frames]

    def text(self) -> str:
        if math.isinf(self.psnr_db):
            return Words("compare_identical", what=self.what)
        figures = {"psnr": f"{self.psnr_db:.2f}", "ssim": f"{self.ssim:.4f}", "what": self.what}
        changes = Words("compare_no_flicker") if self.flicker is None else f"{self.flicker:.5f}"
        return Joined([Words("compare_figures", **figures, flicker=changes), Words("compare_scale")], LINES)


def compare(reference: Any, clip: Any, latent_format: Any = None, labels: tuple[str, str] = ("a", "b")) -> Comparison:
    """Compare two IMAGE batches or two LATENTs.

    Images are compared as they are (0..1). Latents are compared channel by channel in the value range of the
    reference; for the picture they are shown as `latent_preview` does.

    Raises:
        ValueError: if one is a latent and the other is not, or their sizes differ.
    """
    latents = [isinstance(value, dict) for value in (reference, clip)]
    if latents[0] != latents[1]:
        raise ValueError("DraftAttention Compare: compare two latents or two image batches, not one of each")
    if latents[0]:
        return _compare_latents(reference["samples"], clip["samples"], latent_format, labels)
    _same_size(reference, clip)
    a, b = (value[..., :3].detach().float().cpu() for value in (reference, clip))
    what = Words("compare_images", count=len(a), size=f"{a.shape[2]}x{a.shape[1]}")
    return _measure(a, b, 1.0, what, (from_image(a), from_image(b)), labels)


def _compare_latents(a: Tensor, b: Tensor, latent_format: Any, labels: tuple[str, str]) -> Comparison:
    _same_size(a, b)
    first, second = video_of(a), video_of(b)
    span = max(float(first.max() - first.min()), 1e-12)
    if latent_format is not None:
        left, right = latent_preview(a, latent_format), latent_preview(b, latent_format)
    else:
        components = Components(first)
        left, right = ((components(video) * 255).round().byte().numpy() for video in (first, second))
    what = Words("compare_latents", frames=len(first), channels=first.shape[-1])
    scale = max(1, 256 // first.shape[2])
    return _measure(first, second, span, what, (left, right), labels, scale)


def _measure(
    a: Tensor,
    b: Tensor,
    span: float,
    what: str,
    clips: tuple[Frames, Frames],
    labels: tuple[str, str],
    scale: int = 1,
) -> Comparison:
    changes = flicker(b, a) / span if len(a) > 1 else None
    frames = side_by_side([*clips, difference(*clips)], [*labels, "difference x 4"], scale=scale)
    return Comparison(psnr(b, a, span), ssim(b, a, span), changes, what, frames, clips)


def _same_size(a: Tensor, b: Tensor) -> None:
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(
            f"DraftAttention Compare: the two differ in size, {tuple(a.shape)} and {tuple(b.shape)}: "
            "compare runs of the same size and length"
        )
