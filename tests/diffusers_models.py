"""Tiny random diffusers transformers with inputs for them: odd sizes, batch 2, texts of different length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

GRID = (3, 5, 7)
TOKENS = 3 * 5 * 7
HEADS = 2
TEXT = 11
# Text tokens each sample reads: fewer than there are, and never the same number.
READ = (4, 9)


@dataclass(frozen=True)
class TinyModel:
    """A model class in small.

    Attributes:
        build: makes a random model.
        inputs: inputs of a batch of any size, at timestep 700.
        layers: video self-attention modules.
        text: text tokens the core should see beside the video: those up to the last one read.
    """

    build: Callable[[], Any]
    inputs: Callable[[int], dict[str, Any]]
    layers: int
    text: int = 0


def _latent(batch: int, channels: int, patch: int) -> torch.Tensor:
    return torch.randn(batch, channels, GRID[0], GRID[1] * patch, GRID[2] * patch)


def _mask(batch: int, length: int, read: tuple[int, ...]) -> torch.Tensor:
    counts = torch.tensor([read[i % len(read)] for i in range(batch)])
    return (torch.arange(length)[None] < counts[:, None]).long()


def _wan(**more: Any) -> dict[str, Any]:
    return {
        "num_attention_heads": HEADS,
        "attention_head_dim": 24,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 3,
        "rope_max_seq_len": 32,
        **more,
    }


def _wan_inputs(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": _latent(batch, 4, 2),
        "timestep": torch.full((batch,), 700),
        "encoder_hidden_states": torch.randn(batch, TEXT, 16),
    }


def _wan_animate() -> WanAnimateTransformer3DModel:
    more = {
        "in_channels": 12,
        "latent_channels": 4,
        "image_dim": 8,
        "added_kv_proj_dim": HEADS * 24,
        "motion_encoder_size": 16,
        "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 8,
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
        # A face adapter after every layer.
        "inject_face_latents_blocks": 1,
    }
    return WanAnimateTransformer3DModel(**_wan(**more))


def _wan_animate_inputs(batch: int) -> dict[str, Any]:
    return {
        **_wan_inputs(batch),
        "hidden_states": _latent(batch, 12, 2),
        "encoder_hidden_states_image": torch.randn(batch, 5, 8),
        # The first frame of the latent is the character's picture.
        "pose_hidden_states": _latent(batch, 4, 2)[:, :, 1:],
        "face_pixel_values": torch.randn(batch, 3, 4 * (GRID[0] - 2) + 1, 16, 16),
    }


def _hunyuan(**more: Any) -> HunyuanVideoTransformer3DModel:
    return HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=HEADS,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
        **more,
    )


def _hunyuan_inputs(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": _latent(batch, 4, 2),
        "timestep": torch.full((batch,), 700.0),
        "encoder_hidden_states": torch.randn(batch, TEXT, 16),
        "encoder_attention_mask": _mask(batch, TEXT, READ),
        "pooled_projections": torch.randn(batch, 8),
        "guidance": torch.full((batch,), 6000.0),
    }


def _hunyuan15_inputs(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": _latent(batch, 5, 1),
        "timestep": torch.full((batch,), 700.0),
        "encoder_hidden_states": torch.randn(batch, TEXT, 16),
        "encoder_attention_mask": _mask(batch, TEXT, READ),
        "encoder_hidden_states_2": torch.randn(batch, 6, 8),
        "encoder_attention_mask_2": _mask(batch, 6, (3, 2)),
        # All zero is text to video: the image tokens are there, and no one may read them.
        "image_embeds": torch.zeros(batch, 5, 12),
    }


MODELS: dict[str, TinyModel] = {
    "wan": TinyModel(lambda: WanTransformer3DModel(**_wan()), _wan_inputs, 3),
    "wan_vace": TinyModel(
        lambda: WanVACETransformer3DModel(**_wan(vace_layers=[0, 2], vace_in_channels=6)),
        lambda batch: {**_wan_inputs(batch), "control_hidden_states": _latent(batch, 6, 2)},
        5,
    ),
    "skyreels_v2": TinyModel(lambda: SkyReelsV2Transformer3DModel(**_wan()), _wan_inputs, 3),
    "wan_animate": TinyModel(_wan_animate, _wan_animate_inputs, 3),
    "hunyuan": TinyModel(_hunyuan, _hunyuan_inputs, 4, max(READ)),
    "hunyuan_i2v": TinyModel(lambda: _hunyuan(image_condition_type="token_replace"), _hunyuan_inputs, 4, max(READ)),
    "hunyuan15": TinyModel(
        lambda: HunyuanVideo15Transformer3DModel(
            in_channels=5,
            out_channels=4,
            num_attention_heads=HEADS,
            attention_head_dim=16,
            num_layers=3,
            num_refiner_layers=1,
            text_embed_dim=16,
            text_embed_2_dim=8,
            image_embed_dim=12,
            rope_axes_dim=(4, 6, 6),
        ),
        _hunyuan15_inputs,
        3,
        # ByT5 and MLLM tokens that are read come first: 3 + 4 and 2 + 9.
        11,
    ),
}


def build(name: str) -> Any:
    """A model ready for inference; parameters large enough that attention is far from uniform."""
    torch.manual_seed(0)
    model = MODELS[name].build().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(2.0)
    return model


def build_smooth(name: str) -> Any:
    """A model whose output changes slowly along a run, as that of trained ones does: it hardly follows the timestep
    itself, which random weights make noise of, and can be forecast."""
    model = build(name)
    muted = [p for key, p in model.named_parameters() if "time_embed" in key or "timestep_embed" in key]
    assert muted
    for parameter in muted:
        parameter.mul_(0.1)
    return model
