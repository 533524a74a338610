"""HunyuanVideo: the text stands before the video in one sequence."""

from __future__ import annotations

from dataclasses import replace

import torch

from .case import Case, rand

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
_T2V = Case(
    "HunyuanVideo t2v",
    "HunyuanVideo",
    HUNYUAN,
    (16, 3, 6, 10),
    (3, 3, 5),
    before=5,
    extra="text",
    layers=4,
    pooled=32,
)

CASES = (
    _T2V,
    replace(
        _T2V,
        name="HunyuanVideo t2v, text mask",
        extra="masked text",
        cond={"attention_mask": torch.tensor([[1, 1, 1, 0, 0]])},
        key_bias=True,
    ),
    replace(
        _T2V,
        name="HunyuanVideo i2v (concat)",
        config="HunyuanVideoI2V",
        unet={**HUNYUAN, "in_channels": 33},
        cond={"concat_latent_image": rand(1, 16, 3, 6, 10), "concat_mask": torch.ones(1, 1, 3, 6, 10)},
    ),
    replace(_T2V, name="HunyuanVideo i2v (token replace)", cond={"guiding_frame_index": 0}),
    replace(
        _T2V,
        name="HunyuanVideo SkyReels i2v",
        config="HunyuanVideoSkyreelsI2V",
        unet={**HUNYUAN, "in_channels": 32},
        cond={"concat_latent_image": rand(1, 16, 3, 6, 10)},
    ),
    replace(
        _T2V,
        name="HunyuanVideo reference latent",
        before=5 + 15,
        extra="text, reference",
        cond={"ref_latent": rand(1, 16, 1, 6, 10)},
    ),
)
