"""Cosmos Predict 2: no extra tokens."""

from __future__ import annotations

from .case import Case

CASES = (
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
)
