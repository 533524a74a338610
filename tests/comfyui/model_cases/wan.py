"""Wan 2.1 and 2.2: text to video, image to video, and conditions that add frames or tokens."""

from __future__ import annotations

from dataclasses import replace

from .case import Case, rand, vision

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
# A latent that the patches do not divide, so the host pads it; and one that they divide.
PADDED = Case("Wan t2v", "WAN21_T2V", {**WAN, "model_type": "t2v"}, (16, 3, 7, 9), (3, 4, 5))
EVEN = replace(PADDED, latent=(16, 3, 6, 10), grid=(3, 3, 5))

_I2V = replace(PADDED, config="WAN21_I2V", unet={**WAN, "model_type": "i2v", "in_dim": 36})
_5B = {**WAN, "model_type": "t2v", "in_dim": 48, "out_dim": 48}

CASES = (
    PADDED,
    replace(
        _I2V,
        name="Wan i2v",
        cond={"clip_vision_output": vision(257, 1280), "concat_latent_image": rand(1, 16, 3, 7, 9)},
    ),
    replace(
        _I2V,
        name="Wan first-last frame",
        unet={**_I2V.unet, "flf_pos_embed_token_number": 514},
        cond={"clip_vision_output": vision(514, 1280), "concat_latent_image": rand(1, 16, 3, 7, 9)},
    ),
    replace(PADDED, name="Wan 2.2 5B", config="WAN22_T2V", unet=_5B, latent=(48, 3, 7, 9)),
    replace(EVEN, name="Wan 2.2 5B i2v (noise mask)", config="WAN22_T2V", unet=_5B, latent=(48, 3, 6, 10), kept=15),
    replace(
        EVEN,
        name="Wan Fun reference (ref_conv)",
        unet={**EVEN.unet, "in_dim_ref_conv": 16},
        before=15,
        extra="reference",
        cond={"reference_latents": [rand(1, 16, 1, 6, 10)]},
    ),
    replace(
        PADDED,
        name="Wan Phantom (time_dim_concat)",
        grid=(5, 4, 5),
        cond={"time_dim_concat": rand(1, 16, 2, 7, 9)},
        given=40,
    ),
    replace(
        PADDED,
        name="Wan Bernini (context latents)",
        after=26,
        extra="context streams",
        cond={"context_latents": [rand(1, 16, 1, 7, 9), rand(1, 16, 1, 4, 6)]},
    ),
)
