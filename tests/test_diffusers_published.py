"""Published systems on diffusers' transformers: the settings of `published`, and CalibAtt from calibration to use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from draftattention import Schedule, Settings, apply_draft_attention, published
from draftattention.draftattn_core.run.calibration_file import (
    add_to_calibration,
    calibration_path,
    load_profile_with_masks,
)
from draftattention.draftattn_core.run.fingerprint import ProfileError
from draftattention.draftattn_core.run.profile_file import add_to_file
from tests.diffusers_models import HEADS, MODELS, build

STEPS = 3
TIMES = tuple(700.0 - 200 * step for step in range(STEPS))
NAMES = ("wan", "hunyuan")


def sample(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """A few evaluations, one after the other, of the condition and of another text."""
    x = inputs["hidden_states"]
    other = inputs["encoder_hidden_states"] + 0.5
    for time in TIMES:
        given = {**inputs, "hidden_states": x, "timestep": torch.full_like(inputs["timestep"], time)}
        with torch.no_grad():
            out = model(**given, return_dict=False)[0]
            model(**{**given, "encoder_hidden_states": other}, return_dict=False)
        x = x + 0.1 * out if out.shape == x.shape else x
    return out


def small(settings: Settings) -> Settings:
    """With blocks that a video of 105 tokens has some of."""
    return replace(settings, q_block=8, k_block=8, tile=None)


@pytest.mark.parametrize("model_name", NAMES)
@pytest.mark.parametrize("name", ["sparse videogen", "radial attention", "adaspa", "svg-ear"])
def test_a_published_system_serves_a_model_and_is_dense_where_it_keeps_all(model_name: str, name: str) -> None:
    model, inputs = build(model_name), MODELS[model_name].inputs(1)
    exact, errors = sample(model, inputs), {}
    # Radial attention's layer 0 is dense, whatever the density.
    layers = MODELS[model_name].layers - (name == "radial attention")
    for density in (0.4, 0.999):
        settings = small(published(name, density, steps=STEPS))
        with apply_draft_attention(model, settings, timesteps=TIMES) as handle:
            out = sample(model, inputs)
        assert handle.report.calls_sparse == 2 * STEPS * layers, handle.report.notes
        errors[density] = float((out - exact).norm() / exact.norm())
    assert 0 < errors[0.4] < 0.5, errors
    # Radial attention drops some frames at any density; Sparse VideoGen's formula takes twice the text's share off.
    never_whole = name == "radial attention" or (name == "sparse videogen" and model_name == "hunyuan")
    assert errors[0.999] < (errors[0.4] / 2 if never_whole else 1e-4), errors


@pytest.mark.parametrize("model_name", NAMES)
def test_calibatt_is_calibrated_by_dense_runs_and_followed_from_its_file(tmp_path: Path, model_name: str) -> None:
    model, inputs = build(model_name), MODELS[model_name].inputs(1)
    layers, path = MODELS[model_name].layers, tmp_path / "toy.safetensors"
    watching = Settings(schedule=Schedule(((0.0, 1.0),)), record=True, record_masks=True, mask_block=8)
    exact = sample(model, inputs)
    for prompt in ("a fox", "a hen"):
        with apply_draft_attention(model, watching, timesteps=TIMES) as handle:
            assert torch.equal(sample(model, inputs), exact)
        run = handle.run
        votes, figures = run.calibration(prompt), run.profile(prompt)
        assert votes is not None and figures is not None, run.report.notes
        add_to_file(figures, path)
        add_to_calibration(votes, calibration_path(path))
    profile = load_profile_with_masks(path)
    assert profile.calibration is not None
    kept = profile.calibration.experts["main"]
    assert kept.masks.shape == (STEPS, layers) and bool((kept.masks == 2).all()), "one vote of each run's condition"
    assert profile.calibration.fingerprint.heads == HEADS
    with apply_draft_attention(model, published("calibatt", profile=profile), timesteps=TIMES) as handle:
        out = sample(model, inputs)
    assert handle.report.calls_sparse == 2 * STEPS * layers and not handle.report.notes, handle.report.notes
    assert 0 < float((out - exact).norm() / exact.norm()) < 0.5 and handle.report.executed_density() < 1.0
    other = build(NAMES[NAMES.index(model_name) - 1])
    with pytest.raises(ProfileError, match="these masks were calibrated on"):
        apply_draft_attention(other, published("calibatt", profile=profile), timesteps=TIMES)
