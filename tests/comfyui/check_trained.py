"""Runs in ComfyUI's Python: published systems chosen on the node, on the demo's trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import host
import torch
from check_published import apply, calibrate, folder, profile
from toy_runs import difference, run

CHECKS, check = host.registry()

MODEL = Path(__file__).parents[2] / "demo" / "tiny_wan.safetensors"
# 7 x 12 x 16 tokens: 10.5 blocks of 128.
LATENT = torch.zeros(1, 16, 7, 24, 32)
STEPS, LAYERS = 4, 5
PRESETS = ("paper", "sparse videogen", "radial attention", "adaspa", "svg-ear")
METHODS = ("draft", "svg", "radial", "adaspa", "ear")


def trained() -> Any:
    """As UNETLoader loads it."""
    import comfy.sd

    try:
        return comfy.sd.load_diffusion_model(str(MODEL), model_options={"dtype": torch.float32})
    except RuntimeError as error:
        if "text_embedding" not in str(error):
            raise
        raise host.Absent("this ComfyUI loads no Wan model with a text of another width than 4096") from None


def sampled(model: Any) -> torch.Tensor:
    text = host.pack("nodes.demo_prompts").prompt_embedding("pan")
    return run(model, LATENT, [[text, {}]], steps=STEPS)


@check("published systems run on the demo's trained model, and come closer with our tail behind them")
def published() -> None:
    exact = sampled(trained())
    errors = {}
    for preset in PRESETS:
        patched, handle = apply(trained(), preset=preset)
        errors[preset] = difference(sampled(patched), exact)
        assert handle.report.calls_sparse >= LAYERS - 1, (preset, handle.report.summary(), handle.report.notes)
        unexpected = set(handle.report.calls_dense()) - {"schedule", "dense layer", "not self-attention"}
        assert not unexpected, (preset, unexpected)
        assert 0 < errors[preset] < 0.3, (preset, errors)
    for method in METHODS:
        found = {}
        for tail in ("auto", "none"):
            patched, handle = apply(trained(), method=method, tail=tail)
            found[tail] = difference(sampled(patched), exact)
            assert handle.report.calls_sparse == STEPS * LAYERS, (method, handle.report.summary(), handle.report.notes)
        assert found["auto"] < found["none"], (method, found)


@check("CalibAtt calibrates on the demo's trained model and follows its masks there")
def calibatt() -> None:
    folder()
    exact = sampled(trained())
    assert torch.equal(sampled(calibrate(trained(), prompt="pan")), exact), "to vote does not change a run"
    loaded, *_ = profile()
    patched, handle = apply(trained(), preset="calibatt", profile=loaded)
    error = difference(sampled(patched), exact)
    assert handle.report.calls_sparse == STEPS * LAYERS, (handle.report.summary(), handle.report.notes)
    assert handle.report.executed_density() < 1.0 and 0 < error < 0.3, (handle.report.executed_density(), error)
