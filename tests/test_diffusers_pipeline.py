"""HunyuanVideo 1.5 through its own pipeline: its guider, masks as floats, image tokens nobody reads, its scheduler."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="the pipeline of HunyuanVideo 1.5 imports transformers")

from diffusers import (
    AutoencoderKLHunyuanVideo15,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance

from draftattention.draftattn_core import DenseReason, Schedule, Settings
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.step_cache import StepCacheSettings
from tests.diffusers_models import GRID, MODELS

STEPS = 2


@pytest.fixture(scope="module")
def pipe() -> Any:
    """Without its text encoders, whose embeddings are given; only the config of its VAE is read."""
    torch.manual_seed(0)
    model = MODELS["hunyuan15"].build()
    # The pipeline hands the model its latent, as many channels of condition, and a mask.
    transformer = HunyuanVideo15Transformer3DModel.from_config({**model.config, "in_channels": 5, "out_channels": 2})
    for parameter in transformer.eval().requires_grad_(False).parameters():
        if parameter.dim() > 1:
            parameter.mul_(2.0)
    pipe = HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=AutoencoderKLHunyuanVideo15(latent_channels=2, block_out_channels=(32,) * 5, layers_per_block=1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )
    pipe.vision_num_semantic_tokens = 5
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, steps: int = STEPS) -> torch.Tensor:
    torch.manual_seed(1)
    given = MODELS["hunyuan15"].inputs(2)
    arguments: dict[str, Any] = {"latents": torch.randn(2, 2, *GRID)}
    for which in ("", "_2"):
        text, mask = given[f"encoder_hidden_states{which}"], given[f"encoder_attention_mask{which}"]
        arguments[f"prompt_embeds{which}"], arguments[f"prompt_embeds_mask{which}"] = text, mask
        # Another text, of another length for each sample.
        arguments[f"negative_prompt_embeds{which}"] = -text
        arguments[f"negative_prompt_embeds_mask{which}"] = mask.roll(1, 0)
    latents: torch.Tensor = pipe(num_inference_steps=steps, output_type="latent", **arguments).frames
    return latents


def test_a_run_of_the_pipeline(pipe: Any) -> None:
    """Dense it is the pipeline's own to the bit; sparse with every block kept it is that to rounding, and every
    call of both conditions, all layers and steps is served."""
    layers = MODELS["hunyuan15"].layers
    expected = run(pipe)
    for density, limit in ((1.0, 0.0), (0.9999, 1e-4), (0.3, 0.2)):
        settings = Settings(schedule=Schedule(((0.0, density),)), auto_gain=False, q_block=16, k_block=8)
        with apply_draft_attention(pipe.transformer, settings, scheduler=pipe.scheduler) as handle:
            out = run(pipe)
        error = float((out - expected).norm() / expected.norm())
        assert error <= limit and (error > 0) == (density < 1)
        report = handle.report
        assert report.notes == []
        places = sorted((call.position.step, call.position.layer) for call in report.calls if call.position)
        assert places == [(step, layer) for step in range(STEPS) for layer in range(layers) for _ in range(2)]
        dense = {DenseReason.SCHEDULE.value: 2 * STEPS * layers} if density == 1.0 else {}
        assert report.calls_dense() == dense
    assert torch.equal(run(pipe), expected)


def test_a_planned_run_of_the_pipeline_computes_its_steps_for_both_conditions_and_answers_the_others(pipe: Any) -> None:
    expected, calls = run(pipe, 8), []
    hook = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    # Random weights: what cannot be foretold is forecast all the same.
    skip = StepCacheSettings("spread", share=0.5, max_forecast_error=math.inf)
    settings = Settings(schedule=Schedule(((0.0, 1.0),)), auto_gain=False, q_block=16, k_block=8, skip=skip)
    try:
        with apply_draft_attention(pipe.transformer, settings, scheduler=pipe.scheduler) as handle:
            out = run(pipe, 8)
    finally:
        hook.remove()
    report = handle.report
    assert report.outcomes == {"computed": 8, "forecast": 8} and len(calls) == 8
    assert [made.index for made in report.decisions if str(made.outcome) == "computed"] == [0, 2, 5, 7]
    assert {(made.branches_computed, made.branches_skipped) for made in report.decisions} == {(2, 0), (0, 2)}
    assert [made.corrected for made in report.decisions].count(True) == 3
    assert out.shape == expected.shape and torch.isfinite(out).all() and not torch.equal(out, expected)
