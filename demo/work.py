"""Work: what a run cost beside the dense run of the same steps, in multiplications of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import WanTransformer3DModel


def attention_share(model: WanTransformer3DModel, tokens: int) -> float:
    """Share of self-attention in the multiplications of one dense forward pass of `tokens` video tokens."""
    config = model.config
    width = config.num_attention_heads * config.attention_head_dim
    attention = 2 * tokens * tokens * width
    # self-attention's four projections, cross-attention's two on the video side, the feed-forward pair
    rest = tokens * (6 * width * width + 2 * width * config.ffn_dim)
    return attention / (attention + rest)


def work(report: Mapping[str, Any], share: float) -> float:
    """Work of a run, 1 for a dense one: skipped evaluations cost nothing, sparse ones their attention and the rest.

    Args:
        report: `RunReport.to_dict()` of the run.
        share: of attention in a dense evaluation, as `attention_share` counts it.
    """
    computed, asked = report["evaluations"]["computed"], sum(report["evaluations"].values())
    return float(computed / asked * (1.0 - share + share * report["work_density"]))
