"""Comparing clips and latents; pictures of latents."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch


@pytest.fixture
def comparison(part):
    return part("nodes.display.comparison")


@pytest.fixture
def pictures(part):
    return part("nodes.display.pictures")


def clip(frames: int = 5) -> torch.Tensor:
    return torch.rand(frames, 24, 32, 3)


def test_images_are_measured_as_they_are(comparison) -> None:
    a = clip() * 0.5
    found = comparison.compare(a, a + 0.1)
    assert found.psnr_db == pytest.approx(20.0, abs=1e-3)
    assert found.flicker == pytest.approx(0.0, abs=1e-6)
    assert found.ssim < 1
    assert "PSNR 20.00 dB" in found.text() and "5 images of 32x24" in found.text()


def test_the_picture_holds_both_clips_and_four_times_their_difference(comparison) -> None:
    a = clip(2) * 0.5
    frames = comparison.compare(a, a + 0.1).frames
    assert frames.dtype == np.uint8 and len(frames) == 2
    bottom = frames[0, 25:49]  # below one line of labels
    expected = np.rint(a[0].numpy() * 255)
    assert (bottom[:, :32] == expected).all()
    # 0.1 of 255 is 25.5; times four, give or take the rounding of both.
    assert any(np.abs(bottom[:, x : x + 32].astype(int) - 102).max() <= 8 for x in range(64, bottom.shape[1] - 31))


def test_identical_clips_are_called_identical(comparison) -> None:
    a = clip()
    found = comparison.compare(a, a.clone())
    assert math.isinf(found.psnr_db) and "Identical" in found.text()


def test_a_single_frame_has_no_flicker(comparison) -> None:
    a = clip(1)
    found = comparison.compare(a, a * 0.9)
    assert found.flicker is None and "single frame" in found.text()


def test_latents_are_measured_in_the_range_of_the_reference(comparison) -> None:
    a = torch.linspace(-3, 5, 16 * 3 * 8 * 12).view(1, 16, 3, 8, 12)
    found = comparison.compare({"samples": a}, {"samples": a + 0.8})
    assert found.psnr_db == pytest.approx(20.0, abs=1e-3)
    assert "latents of 3 frames, 16 channels" in found.what
    assert len(found.frames) == 3


def test_what_cannot_be_compared_is_refused_with_what_to_do(comparison) -> None:
    latent = {"samples": torch.zeros(1, 16, 3, 8, 8)}
    with pytest.raises(ValueError, match="not one of each"):
        comparison.compare(latent, clip())
    with pytest.raises(ValueError, match="same size"):
        comparison.compare(clip(4), clip(5))
    with pytest.raises(ValueError, match="one video is needed"):
        comparison.compare({"samples": torch.zeros(1, 8, 100)}, {"samples": torch.zeros(1, 8, 100)})


def test_the_preview_of_a_latent_uses_the_models_factors(pictures) -> None:
    fake = SimpleNamespace(
        latent_rgb_factors=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]],
        latent_rgb_factors_bias=[0.0, 0.0, -0.5],
        process_in=lambda latent: latent / 2.0,
    )
    samples = torch.zeros(1, 4, 2, 3, 5)
    samples[:, 0] = 1.0
    frames = pictures.latent_preview(samples, fake)
    assert frames.shape == (2, 3, 5, 3)
    # (0.5, 0, -0.5) from -1..1 to 0..255.
    assert np.abs(frames[1, 2, 4].astype(int) - (191, 128, 64)).max() <= 1


def test_without_factors_the_strongest_components_are_shown(pictures) -> None:
    samples = torch.zeros(1, 6, 1, 4, 8)
    samples[0, 3, 0, :, 4:] = 7.0
    frames = pictures.latent_preview(samples)
    assert frames[0, 0, 0, 0] == 0 and frames[0, 0, 7, 0] == 255


def test_components_of_the_reference_colour_the_other_clip_alike(pictures) -> None:
    reference = torch.rand(2, 4, 6, 16)
    components = pictures.Components(reference)
    assert torch.equal(components(reference), components(reference.clone()))
    assert components(reference).min() >= 0 and components(reference).max() <= 1
    assert pictures.Components(torch.rand(1, 4, 4, 2))(torch.rand(1, 4, 4, 2)).shape == (1, 4, 4, 3)


def test_images_go_to_frames_and_back(pictures) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    image = pictures.to_image(frames)
    assert image.shape == (3, 4, 5, 3) and image.dtype == torch.float32 and image.max() <= 1
    assert (pictures.from_image(image) == frames).all()
