"""Runs in ComfyUI's Python: budgets by Apply, a profile made by Calibrate, loaded by Profile, used by Apply."""

from __future__ import annotations

import tempfile
from typing import Any

import host
import torch
from toy_runs import LAYERS, run, wan

CHECKS, check = host.registry()


def folder() -> Any:
    """A models folder of its own for a check."""
    import folder_paths

    folder_paths.models_dir = tempfile.mkdtemp()
    return host.pack("nodes.host.recording").profiles_folder()


def calibrate(model: Any, **inputs: Any) -> Any:
    return host.pack("nodes.calibrate").DraftAttentionCalibrate.execute(model, "toy", **inputs)[0]


def profile() -> tuple[Any, str, torch.Tensor]:
    made = host.pack("nodes.profile").DraftAttentionProfile
    made.hidden = None
    return tuple(made.execute("toy"))


@check("Apply spends its density by measured error from the second sparse step on")
def budgets() -> None:
    patched, handle = host.apply(wan(), budgets="error")
    run(patched, steps=3)
    told = handle.report.budgets
    assert told and told[0].source == "this run" and set(told[0].after) == set(range(LAYERS)), handle.report.notes
    assert handle.report.calls_sparse + handle.report.calls_dense().get("budget", 0) == 3 * LAYERS


@check("max_error is promised for every layer")
def max_error() -> None:
    patched, handle = host.apply(wan(), max_error=0.2)
    run(patched, steps=3)
    assert handle.report.budgets[0].worst_layer <= 0.2001 and handle.report.budgets[0].uniform is None


@check("a run behind Calibrate and Apply is kept, and a run with that profile begins with it")
def round_trip() -> None:
    kept = folder()
    sparse, _ = host.apply(wan())
    without = run(sparse, steps=3)
    observed = calibrate(sparse, prompt="a fox")
    assert torch.equal(run(observed, steps=3), without), "to record does not change a sparse run that has no budgets"
    assert [path.name for path in kept.iterdir()] == ["toy.safetensors"]
    loaded, text, picture = profile()
    assert "made from 1 prompt, 1 run" in text and picture.dim() == 4
    patched, handle = host.apply(wan(), profile=loaded)
    run(patched, steps=3)
    assert handle.report.budgets[0].source == "profile", handle.report.notes
    assert not any("was not used" in note for note in handle.report.notes), handle.report.notes


@check("Calibrate alone observes a dense run without a change to it")
def dense() -> None:
    folder()
    model = wan()
    observed = calibrate(model)
    assert torch.equal(run(observed, steps=2), run(model, steps=2))
    loaded, text, _ = profile()
    assert "0 prompts" in text and loaded.runs == 1
    skip = host.pack("draftattn_core.run.step_cache").StepCacheSettings("easycache", 0.0)
    run(calibrate(host.pack("nodes.host.adapter").apply_skip_steps(model, skip)[0]), steps=2)
    assert profile()[0].runs == 2, "a model on which only steps are skipped is observed, too"


@check("a profile of other settings is refused in one sentence and the run goes on")
def refused() -> None:
    folder()
    run(calibrate(wan()), steps=2)
    patched, handle = host.apply(wan(), profile=profile()[0])
    run(patched)
    assert any("profile was not used: this profile was measured with" in note for note in handle.report.notes)
    assert handle.report.calls_sparse == 2 * LAYERS


@check("a name that leads out of the profiles' folder is refused")
def path_tricks() -> None:
    folder()
    for name in ("../x", "/etc/x", "con", ""):
        try:
            host.pack("nodes.calibrate").DraftAttentionCalibrate.execute(wan(), name)
        except ValueError as error:
            assert "cannot name a profile" in str(error)
        else:
            raise AssertionError(name)
