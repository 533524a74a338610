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

LTXV = {
    "image_model": "ltxv",
    "in_channels": 128,
    "cross_attention_dim": 128,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "caption_channels": 64,
    "num_layers": 2,
}
LTXAV = {
    **LTXV,
    "image_model": "ltxav",
    "audio_in_channels": 128,
    "audio_cross_attention_dim": 64,
    "audio_attention_head_dim": 32,
    "audio_num_attention_heads": 2,
    "connector_attention_head_dim": 32,
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}


def _rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def _guide(strength: float, dropped: int = 0) -> dict[str, Any]:
    """One LTX guide frame of 5x7 tokens behind 3 frames of video.

    Args:
        strength: of its attention.
        dropped: how many of its tokens the host leaves out.
    """
    mask = torch.ones(1, 1, 4, 5, 7)
    mask[:, :, 3] = 0.0
    mask[:, :, 3].view(-1)[:dropped] = -1.0
    entry = {"pre_filter_count": 35, "strength": strength, "pixel_mask": None, "latent_shape": [1, 5, 7]}
    return {
        "attention_mask": torch.ones(1, 5, dtype=torch.long),
        "keyframe_idxs": _rand(1, 3, 35, 2) * 20,
        "concat_mask": mask,
        "guide_attention_entries": [entry],
    }


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
        kept: tokens of the latent's first frame, which a noise mask keeps as it is (image to video); 0 for no mask.
        key_bias: the case passes a text mask, which must arrive as a key bias.
        audio: (C, tokens, bands) of a second stream, None for video alone.
        dense: part of the note that must say why the model runs dense; "" for a model that runs sparse.
        dense_reason: the reason its calls must be counted under.
        sampler: name of the host's sampler.
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
    kept: int = 0
    key_bias: bool = False
    audio: tuple[int, ...] | None = None
    dense: str = ""
    dense_reason: str = ""
    sampler: str = "euler"

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
        "Wan 2.2 5B i2v (noise mask)",
        "WAN22_T2V",
        {**WAN, "model_type": "t2v", "in_dim": 48, "out_dim": 48},
        (48, 3, 6, 10),
        (3, 3, 5),
        kept=15,
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
    Case(
        "Wan Fun control",
        "WAN21_FunControl2V",
        {**WAN, "model_type": "i2v", "in_dim": 48, "in_dim_ref_conv": 16},
        (16, 3, 6, 10),
        (3, 3, 5),
        before=15,
        extra="reference",
        cond={
            "concat_latent_image": _rand(1, 32, 3, 6, 10),
            "reference_latents": [_rand(1, 16, 1, 6, 10)],
            "clip_vision_output": _vision(257, 1280),
        },
    ),
    Case(
        "Wan 2.2 Fun Camera",
        "WAN22_Camera",
        {**WAN, "model_type": "camera_2.2", "in_dim": 36},
        (16, 3, 7, 9),
        (3, 4, 5),
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
        "Wan Animate 2",
        "WAN_Animate2",
        {**WAN, "model_type": "animate2", "in_dim": 36},
        (16, 3, 7, 9),
        (3, 4, 5),
    ),
    Case(
        "Wan Animate 2, pose",
        "WAN_Animate2",
        {**WAN, "model_type": "animate2", "in_dim": 36},
        (16, 3, 7, 9),
        (3, 4, 5),
        cond={"pose_video_latent": _rand(1, 16, 2, 7, 9)},
        dense="attends to its video in parts",
        dense_reason="tokens not accounted for",
    ),
    Case(
        "Wan WanDancer",
        "WAN22_WanDancer",
        {**WAN, "model_type": "wandancer", "in_dim": 36, "audio_inject_layers": [0]},
        (16, 3, 8, 8),
        (3, 4, 4),
        cond={"audio_embed": _rand(1, 10, 35), "concat_latent_image": _rand(1, 16, 3, 8, 8)},
    ),
    Case(
        "Wan Causal, all frames at once", "WAN21_CausalAR_T2V", {**WAN, "model_type": "t2v"}, (16, 3, 7, 9), (3, 4, 5)
    ),
    Case(
        "Wan Causal, frame by frame",
        "WAN21_CausalAR_T2V",
        {**WAN, "model_type": "t2v"},
        (16, 3, 6, 10),
        (3, 3, 5),
        dense="one after another on cached keys",
        sampler="ar_video",
    ),
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
        "Wan SCAIL 2",
        "WAN21_SCAIL2",
        {**{key: value for key, value in WAN.items() if key != "in_dim"}, "model_type": "scail2", "in_dim": 20},
        (16, 3, 8, 12),
        (5, 4, 6),
        after=18,
        extra="pose",
        cond={
            "reference_latents": [_rand(1, 16, 1, 8, 12), _rand(1, 16, 1, 8, 12)],
            "pose_video_latent": _rand(1, 16, 3, 4, 6),
            "ref_mask_28ch": _rand(1, 5, 28, 8, 12),
            "driving_mask_28ch": _rand(1, 3, 28, 4, 6),
            "ref_mask_flag": True,
        },
        given_first=48,
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
        "HunyuanVideo SkyReels i2v",
        "HunyuanVideoSkyreelsI2V",
        {**HUNYUAN, "in_channels": 32},
        (16, 3, 6, 10),
        (3, 3, 5),
        before=5,
        extra="text",
        layers=4,
        pooled=32,
        cond={"concat_latent_image": _rand(1, 16, 3, 6, 10)},
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
    # No vision tokens here: ComfyUI itself (to 0.33) cannot put a text mask and vision tokens together.
    Case(
        "HunyuanVideo 1.5 i2v, text mask",
        "HunyuanVideo15",
        HUNYUAN15,
        (32, 2, 7, 3),
        (2, 7, 3),
        before=5,
        extra="masked text",
        patch=(1, 1, 1),
        layers=3,
        cond={
            "attention_mask": torch.tensor([[1, 1, 1, 1, 0]]),
            "concat_latent_image": _rand(1, 32, 2, 7, 3),
            "concat_mask": torch.ones(1, 1, 2, 7, 3),
        },
        key_bias=True,
    ),
    Case(
        "HunyuanVideo 1.5 super-resolution",
        "HunyuanVideo15_SR_Distilled",
        {**HUNYUAN15, "in_channels": 98},
        (32, 3, 5, 7),
        (3, 5, 7),
        before=5,
        extra="text",
        patch=(1, 1, 1),
        layers=3,
        cond={"concat_latent_image": _rand(1, 66, 3, 5, 7)},
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
        "CogVideoX i2v",
        "CogVideoX_I2V",
        {
            "image_model": "cogvideox",
            "in_channels": 32,
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
        cond={"concat_latent_image": _rand(1, 16, 1, 6, 10)},
    ),
    Case(
        "CogVideoX 1.5, odd frames and size",
        "CogVideoX_T2V",
        {
            "image_model": "cogvideox",
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "time_embed_dim": 32,
            "text_embed_dim": 64,
            "num_layers": 2,
            "max_text_seq_length": 5,
            "patch_size_t": 2,
            "use_rotary_positional_embeddings": True,
        },
        (16, 3, 7, 9),
        (2, 4, 5),
        before=5,
        extra="text",
        patch=(2, 2, 2),
    ),
    Case(
        "LTXV",
        "LTXV",
        LTXV,
        (128, 3, 5, 7),
        (3, 5, 7),
        patch=(1, 1, 1),
        cond={"attention_mask": torch.ones(1, 5, dtype=torch.long)},
    ),
    Case(
        "LTXV i2v (noise mask)",
        "LTXV",
        LTXV,
        (128, 3, 5, 7),
        (3, 5, 7),
        patch=(1, 1, 1),
        kept=35,
        cond={"attention_mask": torch.ones(1, 5, dtype=torch.long)},
    ),
    Case("LTXV, guide frame", "LTXV", LTXV, (128, 4, 5, 7), (4, 5, 7), patch=(1, 1, 1), cond=_guide(1.0)),
    Case(
        "LTXV, guide of strength 0.5",
        "LTXV",
        LTXV,
        (128, 4, 5, 7),
        (4, 5, 7),
        cond=_guide(0.5),
        dense="masks a part of its video self-attention",
        dense_reason="mask",
    ),
    Case(
        "LTXV, guide with dropped tokens",
        "LTXV",
        LTXV,
        (128, 4, 5, 7),
        (4, 5, 7),
        cond=_guide(1.0, dropped=6),
        dense="134 tokens where 140 were expected",
        dense_reason="tokens not accounted for",
    ),
    Case(
        "LTX-2, video and audio",
        "LTXAV",
        LTXAV,
        (128, 3, 5, 7),
        (3, 5, 7),
        patch=(1, 1, 1),
        text=(5, 128),
        audio=(8, 6, 16),
        cond={"attention_mask": None},
    ),
    Case(
        "LTX-2, reference audio",
        "LTXAV",
        LTXAV,
        (128, 3, 5, 7),
        (3, 5, 7),
        patch=(1, 1, 1),
        text=(5, 128),
        audio=(8, 6, 16),
        cond={"attention_mask": None, "ref_audio": {"tokens": _rand(1, 4, 128)}},
    ),
    Case(
        "MiniMax-H3",
        "MiniMaxH3",
        {
            "image_model": "minimax_h3",
            "hidden_size": 128,
            "num_layers": 2,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 1,
            "attention_head_dim": 128,
            "ffn_hidden_size": 64,
            "text_dim": 64,
            "timestep_input_dim": 32,
            "time_embed_hidden_size": 64,
            "time_embed_dim": 32,
        },
        (24, 3, 6, 10),
        (3, 3, 5),
        text=(5, 64),
        audio=(32, 2, 8),
        dense="Model Sparse Attention",
        dense_reason="unknown token grid",
    ),
)
