"""Which noise levels the tiny model is trained at."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from demo.flow import shifted
from demo.train import draw_sigma

# Large enough for the greatest shift, 5.
GRID = (9, 24, 40)


def share_next_to_noise(even: bool) -> float:
    """Share of 20,000 drawn levels above that of the first tenth of a sampler's steps."""
    levels = draw_sigma(20_000, GRID, torch.Generator().manual_seed(0), even=even)
    return float((levels > shifted(torch.tensor(0.9), 5.0)).float().mean())


def test_even_levels_fall_next_to_pure_noise_as_often_as_a_samplers_steps_do() -> None:
    assert share_next_to_noise(even=True) == pytest.approx(0.1, abs=0.01)


def test_other_levels_fall_there_less_than_half_as_often() -> None:
    assert 0.02 < share_next_to_noise(even=False) < 0.05
