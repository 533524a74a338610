"""Mochi: text behind the video, cropped to what its mask leaves."""

from __future__ import annotations

import torch

from .case import Case

CASES = (
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
)
