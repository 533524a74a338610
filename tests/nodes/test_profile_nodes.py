"""What the profile nodes show and keep, as far as it needs no ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from draftattention.draftattn_core.run.profile_file import load_profile
from draftattention.draftattn_core.views.charts.budgets import budget_map
from draftattention.draftattn_core.views.charts.canvas import ramp_colour
from draftattention.nodes.display.profile_text import budgets_of, profile_text
from draftattention.nodes.host import recording as recording_module
from draftattention.nodes.host.recording import KEY, Recording, keep_recording, model_name, recording_of
from draftattention.nodes.inputs.presets import Choices
from tests.core.profiles import a_profile


def test_the_words_say_model_sources_and_caution() -> None:
    profile = a_profile()
    text = profile_text(profile, budgets_of(profile, 0.25))
    assert "wan (3 layers, 4 heads of 16)" in text and "made from 1 prompt, 1 run: 9x24x40 (1)" in text
    assert "Careful: made from 1 prompt" in text and "Expert main: 100% of its heads measured." in text


@pytest.mark.parametrize("density", [0.1, 0.25, 0.6])
def test_the_picture_spreads_the_density_that_was_asked_for(density: float) -> None:
    budgets = budgets_of(a_profile(), density)["main"]
    assert budgets.density.shape == (3, 3, 4)
    assert float(budgets.work.mean()) == pytest.approx(density, abs=1e-6)


def test_a_cell_has_the_colour_of_its_density_and_stands_at_its_layer_and_head() -> None:
    table = np.full((3, 5, 4), 0.1)
    table[0, 4, 1] = 1.0
    pixels = np.asarray(budget_map({"main": table}).convert("RGB"))[:, :170]
    dark = np.argwhere((pixels == ramp_colour(1.0)).all(-1))
    light = np.argwhere((pixels == ramp_colour(0.1)).all(-1))
    assert 24 * 4 <= dark[:, 0].min() - light[:, 0].min() < 24 * 5
    assert dark[:, 1].min() - light[:, 1].min() == 24


def test_many_layers_and_heads_fit_and_experts_stand_below_each_other() -> None:
    one = budget_map({"main": np.random.default_rng(0).random((3, 60, 40))})
    two = budget_map({name: np.zeros((3, 60, 40)) for name in ("high", "low")})
    assert one.width < 1200 and one.height < 600 and two.height > 1.9 * one.height


def test_choices_hand_profile_error_and_budgets_on() -> None:
    profile = a_profile()
    made = Choices(profile=profile, max_error=0.05, budgets="error").settings(20, 0)
    assert made.profile is profile and made.max_error == 0.05 and made.budgets == "error" and made.spends
    assert not Choices().settings(20, 0).spends


class _Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 4)


def named(patches: dict[str, Any], network: _Network) -> str:
    patcher = SimpleNamespace(model=SimpleNamespace(diffusion_model=network), patches=patches)
    return model_name(patcher, Choices().settings(20, 0), Recording(Path("x"))).weights


def test_a_lora_has_a_name_of_its_own_whether_it_is_merged_yet_or_not() -> None:
    torch.manual_seed(0)
    network = _Network()
    plain = named({}, network)
    lora = {"diffusion_model.blocks.weight": [(1.0, "patch")]}
    before = named(lora, network)
    with torch.no_grad():
        network.blocks.weight += 1
    assert before == named(lora, network) != plain
    assert named({"diffusion_model.blocks.weight": [(0.5, "patch")]}, network) != before


def test_a_model_that_cannot_be_read_has_no_name_and_does_no_harm() -> None:
    assert model_name(object(), Choices().settings(20, 0), None).family == "model"


def test_a_run_is_added_to_its_file_and_the_report_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    made = a_profile()
    run: Any = SimpleNamespace(profile=lambda prompt: made, telling=SimpleNamespace(note=notes.append))
    recording = Recording(tmp_path / "draft_attention" / "mine.safetensors", prompt="a fox")
    assert recording_of({"transformer_options": {KEY: recording}}) is recording and recording_of({}) is None
    keep_recording(run, recording)
    keep_recording(run, recording)
    assert load_profile(recording.path).runs == 2
    assert notes[-1] == "profile mine: made from 1 prompt, 2 runs: 9x24x40 (2)"
    recording.path.write_bytes(b"broken")
    keep_recording(run, recording)
    assert notes[-1].startswith("the profile was not kept: ") and recording.path.read_bytes() == b"broken"


def test_recording_knows_no_comfyui_until_it_is_asked_for_the_folder(part: Callable[[str], ModuleType]) -> None:
    assert part("nodes.host.recording").FOLDER == recording_module.FOLDER == "draft_attention"
