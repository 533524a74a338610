"""A toy of a model that DraftAttention does not know: ComfyUI's own Flux, for pictures."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import host
import torch

TEXT = [[torch.ones(1, 5, 64), {"pooled_output": torch.ones(1, 32)}]]
LATENT = torch.zeros(1, 16, 6, 10)


def flux() -> Any:
    import comfy.ldm.flux.model

    arguments: dict[str, Any] = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": 32,
        "context_in_dim": 64,
        "hidden_size": 128,
        "mlp_ratio": 2.0,
        "num_heads": 1,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": False,
    }
    if any(field.name == "txt_ids_dims" for field in fields(comfy.ldm.flux.model.FluxParams)):
        arguments["txt_ids_dims"] = []
    return host.build("FluxSchnell", arguments)
