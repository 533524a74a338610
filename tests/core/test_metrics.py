"""PSNR, SSIM and flicker against their definitions written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from draftattention.draftattn_core.views.metrics import flicker, psnr, ssim


def clip(frames: int = 3, height: int = 17, width: int = 21, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return smooth.permute(0, 2, 3, 1).contiguous()


def ssim_by_hand(a: torch.Tensor, b: torch.Tensor, size: int = 11) -> float:
    """SSIM of two clips, picture by picture and window by window, as the 2004 paper writes it."""
    pictures = [z.double().permute(0, 3, 1, 2).flatten(0, 1).numpy() for z in (a, b)]
    return float(np.mean([picture_ssim(x, y, size) for x, y in zip(*pictures)]))


def picture_ssim(x: np.ndarray, y: np.ndarray, size: int) -> float:
    place = np.arange(size) - size // 2
    window = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    scores = []
    for top in range(x.shape[0] - size + 1):
        for left in range(x.shape[1] - size + 1):
            p, q = (z[top : top + size, left : left + size] for z in (x, y))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            c = (window * (p - mp) * (q - mq)).sum()
            scores.append((2 * mp * mq + 1e-4) * (2 * c + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return float(np.mean(scores))


def test_psnr_of_a_known_error():
    a = clip()
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 0.1) == pytest.approx(20.0, abs=1e-4)
    assert psnr(255 * a, 255 * (a + 0.1), data_range=255.0) == pytest.approx(20.0, abs=1e-4)


def test_psnr_pools_the_error_over_frames():
    a = torch.zeros(2, 4, 4, 3)
    b = a.clone()
    b[0] += 0.2
    assert psnr(a, b) == pytest.approx(10 * math.log10(1 / 0.02), abs=1e-4)


def test_ssim_is_the_published_formula():
    a = clip()
    b = (a + 0.08 * torch.randn(a.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    expected = ssim_by_hand(a, b)
    assert 0.2 < expected < 0.95
    assert ssim(a, b) == pytest.approx(expected, abs=1e-4)


def test_ssim_of_small_pictures_uses_a_window_that_fits():
    a, b = clip(2, 6, 9), clip(2, 6, 9, seed=1)
    expected = ssim_by_hand(a, b, size=5)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-4)
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-6)


def test_ssim_forgives_a_shift_of_brightness_more_than_noise_of_the_same_psnr():
    a = clip()
    noisy = a + 0.05 * torch.randn(a.shape, generator=torch.Generator().manual_seed(2))
    assert psnr(a, a + 0.05) == pytest.approx(psnr(a, noisy), abs=0.2)
    assert ssim(a, a + 0.05) > 0.98 > 0.94 > ssim(a, noisy)


def test_flicker_counts_only_change_the_reference_does_not_have():
    reference = clip(4)
    assert flicker(reference, reference) == 0.0
    assert flicker(reference + 0.3, reference) == pytest.approx(0.0, abs=1e-6)
    blinking = reference.clone()
    blinking[1] += 0.25
    # Frame 1 comes and goes: two of the three transitions are off by 0.25.
    assert flicker(blinking, reference) == pytest.approx(0.25 * 2 / 3, abs=1e-6)


def test_half_precision_and_mixed_dtypes_are_measured_in_float32():
    a, b = clip(), clip(seed=3)
    assert psnr(a.half(), b) == pytest.approx(psnr(a, b), abs=0.01)


@pytest.mark.parametrize("metric", [psnr, ssim, flicker])
def test_clips_that_do_not_match_are_refused(metric):
    with pytest.raises(ValueError, match="one shape"):
        metric(clip(3), clip(4))
    with pytest.raises(ValueError, match="one shape"):
        metric(clip()[0], clip()[0])


def test_flicker_of_a_single_frame_is_refused():
    with pytest.raises(ValueError, match="two frames"):
        flicker(clip(1), clip(1))
