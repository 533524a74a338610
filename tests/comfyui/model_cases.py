"""Models of the coverage test: ComfyUI's own classes at toy size, and the layout each must show. Needs torch only."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

WAN = {
    "image_model": "wan2.1",
    "dim": 128,
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 2,
    "text_dim": 64,
    "in_dim": 16,
    "out_dim": 16,
}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 32,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 2.0,
    "num_heads": 1,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "patch_size": [1, 2, 2],
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
HUNYUAN15 = {
    **HUNYUAN,
    "in_channels": 65,
    "out_channels": 32,
    "vec_in_dim": None,
    "depth": 3,
    "depth_single_blocks": 0,
    "patch_size": [1, 1, 1],
    "guidance_embed": False,
    "byt5": True,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
    "meanflow_sum": True,
}


def _rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def _vision(tokens: int, width: int) -> SimpleNamespace:
    return SimpleNamespace(penultimate_hidden_states=_rand(1, tokens, width), last_hidden_state=_rand(1, tokens, width))


@dataclass(frozen=True)
class Case:
    """One model and what its video self-attention must look like.

    Attributes:
        name: shown in the test and in the compatibility table.
        config: class in comfy.supported_models; a host without it skips the case.
        unet: keyword arguments of the diffusion model.
        latent: (C, T, H, W).
        grid: expected token grid. before, after: expected extra tokens; extra says what they are.
        patch: (t, h, w) of the model.
        layers: expected video self-attention calls per model evaluation.
        cond: conditioning besides the text.
        text: (tokens, width) of the text; pooled: width of the pooled output, 0 for none.
        given_first, given: tokens at the two ends of the grid that do not come from the sampler's latent.
        key_bias: the case passes a text mask, which must arrive as a key bias.
    """

    name: str
    config: str
    unet: dict[str, Any]
    latent: tuple[int, int, int, int]
    grid: tuple[int, int, int]
    before: int = 0
    after: int = 0
    extra: str = ""
    patch: tuple[int, int, int] = (1, 2, 2)
    layers: int = 2
    cond: dict[str, Any] = field(default_factory=dict)
    text: tuple[int, int] = (5, 64)
    pooled: int = 0
    given_first: int = 0
    given: int = 0
    key_bias: bool = False

    def conditioning(self) -> list[Any]:
        pooled = _rand(1, self.pooled) if self.pooled else None
        return [[_rand(1, *self.text), {"pooled_output": pooled, **self.cond}]]


CASES = (
    Case("Wan t2v", "WAN21_T2V", {**WAN, "model_type": "t2v"}, (16, 3, 7, 9), (3, 4, 5)),
    Case(
        "Wan i2v",
        "WAN21_I2V",
        {**WAN, "model_type": "i2v", "in_dim": 36},
        (16, 3, 7, 9),
        (3, 4, 5),
        cond={"clip_vision_output": _vision(257, 1280), "concat_latent_image": _rand(1, 16, 3, 7, 9)},
    ),
    Case(
        "Wan first-last frame",
        "WAN21_I2V",
        {**WAN, "model_type": "i2v", "in_dim": 36, "flf_pos_embed_token_number": 514},
        (16, 3, 7, 9),
        (3, 4, 5),
        cond={"clip_vision_output": _vision(514, 1280), "concat_latent_image": _rand(1, 16, 3, 7, 9)},
    ),
    Case(
        "Wan 2.2 5B",
        "WAN22_T2V",
        {**WAN, "model_type": "t2v", "in_dim": 48, "out_dim": 48},
        (48, 3, 7, 9),
        (3, 4, 5),
    ),
    Case(
        "Wan Fun reference (ref_conv)",
        "WAN21_T2V",
        {**WAN, "model_type": "t2v", "in_dim_ref_conv": 16},
        (16, 3, 6, 10),
        (3, 3, 5),
        before=15,
        extra="reference",
        cond={"reference_latents": [_rand(1, 16, 1, 6, 10)]},
    ),
    Case(
        "Wan Phantom (time_dim_concat)",
        "WAN21_T2V",
        {**WAN, "model_type": "t2v"},
        (16, 3, 7, 9),
        (5, 4, 5),
        cond={"time_dim_concat": _rand(1, 16, 2, 7, 9)},
        given=40,
    ),
    Case(
        "Wan Bernini (context latents)",
        "WAN21_T2V",
        {**WAN, "model_type": "t2v"},
        (16, 3, 7, 9),
        (3, 4, 5),
        after=26,
        extra="context streams",
        cond={"context_latents": [_rand(1, 16, 1, 7, 9), _rand(1, 16, 1, 4, 6)]},
    ),
    Case(
        "Wan VACE",
        "WAN21_Vace",
        {**WAN, "model_type": "vace", "num_layers": 4, "vace_layers": 2, "vace_in_dim": 96},
        (16, 3, 6, 10),
        (3, 3, 5),
        layers=6,
    ),
    Case("Wan Camera", "WAN21_Camera", {**WAN, "model_type": "camera", "in_dim": 32}, (16, 3, 7, 9), (3, 4, 5)),
    Case(
        "Wan S2V",
        "WAN22_S2V",
        {**WAN, "model_type": "s2v", "audio_inject_layers": [0]},
        (16, 3, 8, 16),
        (3, 4, 8),
        after=32 + 32 + 8 + 8,
        extra="reference, motion",
        cond={"reference_latents": [_rand(1, 16, 1, 8, 16)], "reference_motion": _rand(1, 16, 19, 8, 16)},
    ),
    Case(
        "Wan HuMo",
        "WAN21_HuMo",
        {**WAN, "model_type": "humo"},
        (16, 3, 8, 10),
        (3, 4, 5),
        after=20,
        extra="reference",
        cond={"reference_latents": [_rand(1, 16, 1, 8, 10)]},
    ),
    Case("Wan Animate", "WAN22_Animate", {**WAN, "model_type": "animate", "in_dim": 36}, (16, 3, 7, 9), (3, 4, 5)),
    Case(
        "Wan HuMo, audio",
        "WAN21_HuMo",
        {**WAN, "model_type": "humo"},
        (16, 3, 8, 10),
        (3, 4, 5),
        after=20,
        extra="reference",
        cond={"reference_latents": [_rand(1, 16, 1, 8, 10)], "audio_embed": _rand(1, 3, 8, 5, 1280)},
    ),
    Case(
        "Wan Animate, pose",
        "WAN22_Animate",
        {**WAN, "model_type": "animate", "in_dim": 36},
        (16, 3, 6, 10),
        (3, 3, 5),
        cond={"pose_video_latent": _rand(1, 16, 2, 6, 10)},
    ),
    Case(
        "Wan SCAIL",
        "WAN21_SCAIL",
        {**{key: value for key, value in WAN.items() if key != "in_dim"}, "model_type": "scail", "in_dim": 20},
        (16, 3, 8, 12),
        (4, 4, 6),
        after=18,
        extra="pose",
        cond={"reference_latents": [_rand(1, 16, 1, 8, 12)], "pose_video_latent": _rand(1, 16, 3, 4, 6)},
        given_first=24,
    ),
    Case(
        "HunyuanVideo t2v",
        "HunyuanVideo",
        HUNYUAN,
        (16, 3, 6, 10),
        (3, 3, 5),
        before=5,
        extra="text",
        layers=4,
        pooled=32,
    ),
    Case(
        "HunyuanVideo t2v, text mask",
        "HunyuanVideo",
        HUNYUAN,
        (16, 3, 6, 10),
        (3, 3, 5),
        before=5,
        extra="masked text",
        layers=4,
        pooled=32,
        cond={"attention_mask": torch.tensor([[1, 1, 1, 0, 0]])},
        key_bias=True,
    ),
    Case(
        "HunyuanVideo i2v (concat)",
        "HunyuanVideoI2V",
        {**HUNYUAN, "in_channels": 33},
        (16, 3, 6, 10),
        (3, 3, 5),
        before=5,
        extra="text",
        layers=4,
        pooled=32,
        cond={"concat_latent_image": _rand(1, 16, 3, 6, 10), "concat_mask": torch.ones(1, 1, 3, 6, 10)},
    ),
    Case(
        "HunyuanVideo i2v (token replace)",
        "HunyuanVideo",
        HUNYUAN,
        (16, 3, 6, 10),
        (3, 3, 5),
        before=5,
        extra="text",
        layers=4,
        pooled=32,
        cond={"guiding_frame_index": 0},
    ),
    Case(
        "HunyuanVideo reference latent",
        "HunyuanVideo",
        HUNYUAN,
        (16, 3, 6, 10),
        (3, 3, 5),
        before=5 + 15,
        extra="text, reference",
        layers=4,
        pooled=32,
        cond={"ref_latent": _rand(1, 16, 1, 6, 10)},
    ),
    Case(
        "HunyuanVideo 1.5 t2v, text mask",
        "HunyuanVideo15",
        HUNYUAN15,
        (32, 3, 5, 7),
        (3, 5, 7),
        before=5,
        extra="masked text",
        patch=(1, 1, 1),
        layers=3,
        cond={"attention_mask": torch.tensor([[1, 1, 1, 0, 0]])},
        key_bias=True,
    ),
    Case(
        "HunyuanVideo 1.5 t2v, ByT5 text",
        "HunyuanVideo15",
        HUNYUAN15,
        (32, 3, 5, 7),
        (3, 5, 7),
        before=5 + 4,
        extra="ByT5, text",
        patch=(1, 1, 1),
        layers=3,
        cond={"conditioning_byt5small": _rand(1, 4, 1472)},
    ),
    Case(
        "HunyuanVideo 1.5 i2v",
        "HunyuanVideo15",
        HUNYUAN15,
        (32, 3, 5, 7),
        (3, 5, 7),
        before=5 + 4 + 6,
        extra="vision, ByT5, text",
        patch=(1, 1, 1),
        layers=3,
        cond={
            "conditioning_byt5small": _rand(1, 4, 1472),
            "clip_vision_output": _vision(6, 1152),
            "concat_latent_image": _rand(1, 32, 3, 5, 7),
        },
    ),
    Case(
        "Kandinsky 5",
        "Kandinsky5",
        {
            "image_model": "kandinsky5",
            "in_text_dim": 64,
            "in_text_dim2": 32,
            "time_dim": 32,
            "model_dim": 128,
            "ff_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
        },
        (16, 3, 6, 10),
        (3, 3, 5),
        pooled=32,
    ),
    Case(
        "Cosmos Predict2",
        "CosmosT2IPredict2",
        {
            "image_model": "cosmos_predict2",
            "max_img_h": 240,
            "max_img_w": 240,
            "max_frames": 128,
            "in_channels": 16,
            "out_channels": 16,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "model_channels": 128,
            "num_blocks": 2,
            "num_heads": 2,
            "mlp_ratio": 1.0,
            "crossattn_emb_channels": 64,
            "pos_emb_cls": "rope3d",
            "pos_emb_learnable": True,
            "use_adaln_lora": True,
            "adaln_lora_dim": 16,
        },
        (16, 3, 6, 10),
        (3, 3, 5),
    ),
    Case(
        "Mochi",
        "GenmoMochi",
        {
            "image_model": "mochi_preview",
            "depth": 1,
            "patch_size": 2,
            "num_heads": 24,
            "hidden_size_x": 3072,
            "hidden_size_y": 1536,
            "mlp_ratio_x": 4.0,
            "mlp_ratio_y": 4.0,
            "learn_sigma": False,
            "in_channels": 12,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
            "attn_drop": 0.0,
            "patch_embed_bias": True,
            "posenc_preserve_area": True,
            "timestep_mlp_bias": True,
            "attend_to_padding": False,
            "timestep_scale": 1000.0,
            "use_t5": True,
            "t5_feat_dim": 64,
            "t5_token_length": 8,
            "rope_theta": 10000.0,
        },
        (12, 3, 6, 10),
        (3, 3, 5),
        after=5,
        extra="cropped text",
        layers=1,
        text=(8, 64),
        cond={"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])},
    ),
    Case(
        "CogVideoX",
        "CogVideoX_T2V",
        {
            "image_model": "cogvideox",
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "time_embed_dim": 32,
            "text_embed_dim": 64,
            "num_layers": 2,
            "max_text_seq_length": 5,
            "use_rotary_positional_embeddings": True,
        },
        (16, 3, 6, 10),
        (3, 3, 5),
        before=5,
        extra="text",
    ),
    Case(
        "LTXV",
        "LTXV",
        {
            "image_model": "ltxv",
            "in_channels": 128,
            "cross_attention_dim": 128,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "caption_channels": 64,
            "num_layers": 2,
        },
        (128, 3, 5, 7),
        (3, 5, 7),
        patch=(1, 1, 1),
        cond={"attention_mask": torch.ones(1, 5, dtype=torch.long)},
    ),
)
