"""Models built on Wan: control, camera, speech, references, animation, dance, causal sampling, poses."""

from __future__ import annotations

from dataclasses import replace

from .case import rand, vision
from .wan import EVEN, PADDED, WAN

_HUMO = replace(
    PADDED,
    name="Wan HuMo",
    config="WAN21_HuMo",
    unet={**WAN, "model_type": "humo"},
    latent=(16, 3, 8, 10),
    after=20,
    extra="reference",
    cond={"reference_latents": [rand(1, 16, 1, 8, 10)]},
)
_ANIMATE = {**WAN, "model_type": "animate", "in_dim": 36}
_ANIMATE2 = replace(
    PADDED, name="Wan Animate 2", config="WAN_Animate2", unet={**WAN, "model_type": "animate2", "in_dim": 36}
)
_CAUSAL = replace(PADDED, config="WAN21_CausalAR_T2V")
_SCAIL = replace(
    PADDED,
    name="Wan SCAIL",
    config="WAN21_SCAIL",
    unet={**WAN, "model_type": "scail", "in_dim": 20},
    latent=(16, 3, 8, 12),
    grid=(4, 4, 6),
    after=18,
    extra="pose",
    cond={"reference_latents": [rand(1, 16, 1, 8, 12)], "pose_video_latent": rand(1, 16, 3, 4, 6)},
    given_first=24,
)

CASES = (
    replace(
        EVEN,
        name="Wan VACE",
        config="WAN21_Vace",
        unet={**WAN, "model_type": "vace", "num_layers": 4, "vace_layers": 2, "vace_in_dim": 96},
        layers=6,
    ),
    replace(
        EVEN,
        name="Wan Fun control",
        config="WAN21_FunControl2V",
        unet={**WAN, "model_type": "i2v", "in_dim": 48, "in_dim_ref_conv": 16},
        before=15,
        extra="reference",
        cond={
            "concat_latent_image": rand(1, 32, 3, 6, 10),
            "reference_latents": [rand(1, 16, 1, 6, 10)],
            "clip_vision_output": vision(257, 1280),
        },
    ),
    replace(
        PADDED,
        name="Wan 2.2 Fun Camera",
        config="WAN22_Camera",
        unet={**WAN, "model_type": "camera_2.2", "in_dim": 36},
    ),
    replace(PADDED, name="Wan Camera", config="WAN21_Camera", unet={**WAN, "model_type": "camera", "in_dim": 32}),
    replace(
        PADDED,
        name="Wan S2V",
        config="WAN22_S2V",
        unet={**WAN, "model_type": "s2v", "audio_inject_layers": [0]},
        latent=(16, 3, 8, 16),
        grid=(3, 4, 8),
        after=32 + 32 + 8 + 8,
        extra="reference, motion",
        cond={"reference_latents": [rand(1, 16, 1, 8, 16)], "reference_motion": rand(1, 16, 19, 8, 16)},
    ),
    _HUMO,
    replace(PADDED, name="Wan Animate", config="WAN22_Animate", unet=_ANIMATE),
    _ANIMATE2,
    replace(
        _ANIMATE2,
        name="Wan Animate 2, pose",
        cond={"pose_video_latent": rand(1, 16, 2, 7, 9)},
        dense="attends to its video in parts",
        dense_reason="tokens not accounted for",
    ),
    replace(
        PADDED,
        name="Wan WanDancer",
        config="WAN22_WanDancer",
        unet={**WAN, "model_type": "wandancer", "in_dim": 36, "audio_inject_layers": [0]},
        latent=(16, 3, 8, 8),
        grid=(3, 4, 4),
        cond={"audio_embed": rand(1, 10, 35), "concat_latent_image": rand(1, 16, 3, 8, 8)},
    ),
    replace(_CAUSAL, name="Wan Causal, all frames at once"),
    replace(
        _CAUSAL,
        name="Wan Causal, frame by frame",
        latent=EVEN.latent,
        grid=EVEN.grid,
        dense="one after another on cached keys",
        sampler="ar_video",
    ),
    replace(_HUMO, name="Wan HuMo, audio", cond={**_HUMO.cond, "audio_embed": rand(1, 3, 8, 5, 1280)}),
    replace(
        EVEN,
        name="Wan Animate, pose",
        config="WAN22_Animate",
        unet=_ANIMATE,
        cond={"pose_video_latent": rand(1, 16, 2, 6, 10)},
    ),
    _SCAIL,
    replace(
        _SCAIL,
        name="Wan SCAIL 2",
        config="WAN21_SCAIL2",
        unet={**WAN, "model_type": "scail2", "in_dim": 20},
        grid=(5, 4, 6),
        cond={
            "reference_latents": [rand(1, 16, 1, 8, 12), rand(1, 16, 1, 8, 12)],
            "pose_video_latent": rand(1, 16, 3, 4, 6),
            "ref_mask_28ch": rand(1, 5, 28, 8, 12),
            "driving_mask_28ch": rand(1, 3, 28, 4, 6),
            "ref_mask_flag": True,
        },
        given_first=48,
    ),
)
