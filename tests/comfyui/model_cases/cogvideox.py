"""CogVideoX: text before the video; 1.5 has patches of two frames."""

from __future__ import annotations

from dataclasses import replace

from .case import Case, rand

_T2V = Case(
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
)

CASES = (
    _T2V,
    replace(
        _T2V,
        name="CogVideoX i2v",
        config="CogVideoX_I2V",
        unet={**_T2V.unet, "in_channels": 32},
        cond={"concat_latent_image": rand(1, 16, 1, 6, 10)},
    ),
    replace(
        _T2V,
        name="CogVideoX 1.5, odd frames and size",
        unet={**_T2V.unet, "patch_size_t": 2},
        latent=(16, 3, 7, 9),
        grid=(2, 4, 5),
        patch=(2, 2, 2),
    ),
)
