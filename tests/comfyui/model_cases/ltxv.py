"""LTX-Video and LTX-2: guide frames behind the video, and a second stream of audio."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .case import Case, rand

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
        "keyframe_idxs": rand(1, 3, 35, 2) * 20,
        "concat_mask": mask,
        "guide_attention_entries": [entry],
    }


_VIDEO = Case(
    "LTXV",
    "LTXV",
    LTXV,
    (128, 3, 5, 7),
    (3, 5, 7),
    patch=(1, 1, 1),
    cond={"attention_mask": torch.ones(1, 5, dtype=torch.long)},
)
_GUIDED = replace(_VIDEO, name="LTXV, guide frame", latent=(128, 4, 5, 7), grid=(4, 5, 7), cond=_guide(1.0))
_WITH_AUDIO = replace(
    _VIDEO,
    name="LTX-2, video and audio",
    config="LTXAV",
    unet=LTXAV,
    text=(5, 128),
    audio=(8, 6, 16),
    cond={"attention_mask": None},
)

CASES = (
    _VIDEO,
    replace(_VIDEO, name="LTXV i2v (noise mask)", kept=35),
    _GUIDED,
    replace(
        _GUIDED,
        name="LTXV, guide of strength 0.5",
        cond=_guide(0.5),
        dense="masks a part of its video self-attention",
        dense_reason="mask",
    ),
    replace(
        _GUIDED,
        name="LTXV, guide with dropped tokens",
        cond=_guide(1.0, dropped=6),
        dense="134 tokens where 140 were expected",
        dense_reason="tokens not accounted for",
    ),
    _WITH_AUDIO,
    replace(
        _WITH_AUDIO,
        name="LTX-2, reference audio",
        cond={"attention_mask": None, "ref_audio": {"tokens": rand(1, 4, 128)}},
    ),
)
