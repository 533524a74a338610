"""HunyuanVideo 1.5: a patch is one latent pixel, and ByT5 text and vision tokens stand before the text."""

from __future__ import annotations

from dataclasses import replace

import torch

from .case import Case, rand, vision
from .hunyuan import HUNYUAN

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
_BASE = Case(
    "",
    "HunyuanVideo15",
    HUNYUAN15,
    (32, 3, 5, 7),
    (3, 5, 7),
    before=5,
    extra="text",
    patch=(1, 1, 1),
    layers=3,
)

CASES = (
    replace(
        _BASE,
        name="HunyuanVideo 1.5 t2v, text mask",
        extra="masked text",
        cond={"attention_mask": torch.tensor([[1, 1, 1, 0, 0]])},
        key_bias=True,
    ),
    replace(
        _BASE,
        name="HunyuanVideo 1.5 t2v, ByT5 text",
        before=5 + 4,
        extra="ByT5, text",
        cond={"conditioning_byt5small": rand(1, 4, 1472)},
    ),
    replace(
        _BASE,
        name="HunyuanVideo 1.5 i2v",
        before=5 + 4 + 6,
        extra="vision, ByT5, text",
        cond={
            "conditioning_byt5small": rand(1, 4, 1472),
            "clip_vision_output": vision(6, 1152),
            "concat_latent_image": rand(1, 32, 3, 5, 7),
        },
    ),
    # No vision tokens here: ComfyUI itself (to 0.33) cannot put a text mask and vision tokens together.
    replace(
        _BASE,
        name="HunyuanVideo 1.5 i2v, text mask",
        latent=(32, 2, 7, 3),
        grid=(2, 7, 3),
        extra="masked text",
        cond={
            "attention_mask": torch.tensor([[1, 1, 1, 1, 0]]),
            "concat_latent_image": rand(1, 32, 2, 7, 3),
            "concat_mask": torch.ones(1, 1, 2, 7, 3),
        },
        key_bias=True,
    ),
    replace(
        _BASE,
        name="HunyuanVideo 1.5 super-resolution",
        config="HunyuanVideo15_SR_Distilled",
        unet={**HUNYUAN15, "in_channels": 98},
        cond={"concat_latent_image": rand(1, 66, 3, 5, 7)},
    ),
)
