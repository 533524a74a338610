"""Synthetic tables of a real video model's needs, and their statistics.

A need is the share of keys that holds 95 % of a head's softmax mass. Public tables of Wan 2.1 14B (from SVOO's offline
profiling) have the statistics in `WAN_14B`; the tables themselves are not shipped. Need is no error: these tables test
what budgets by head and bucket are worth where heads differ as much as they do there, and nothing else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Computed by `statistics` from the public table of Wan 2.1 14B text to video (50 steps, 40 layers, 40 heads).
WAN_14B = {
    "mean": 0.247,
    "covers 90 %": 0.725,
    "covers 95 %": 0.856,
    "heads below 0.05": 0.296,
    "heads above 0.5": 0.180,
    "first step": 0.332,
    "last step": 0.247,
    "static": 0.370,
    "static in 3 buckets": 0.282,
    "variance between layers": 0.186,
    "variance within a head": 0.032,
    "variance within a head and bucket": 0.011,
}


def synthetic_needs(seed: int = 0, steps: int = 50, layers: int = 40, heads: int = 40) -> Array:
    """(steps, layers, heads) needs in 0..1."""
    rng = np.random.default_rng(seed)
    # Heads are spread normally in log odds; a fifth of the variance is the layer's.
    logits = -1.85 + rng.normal(0, 1.1, (1, layers, 1)) + rng.normal(0, 1.9, (1, layers, heads))
    time = np.arange(steps)[:, None, None]
    # All begin denser, each by its own measure; then they wander slowly, with a little noise from step to step.
    logits = logits + rng.normal(0.65, 1.0, (1, layers, heads)) * np.exp(-time / 2.5)
    waves = rng.normal(0, 0.22, (2, layers, heads))
    logits = logits + waves[0] * np.cos(np.pi * time / steps) + waves[1] * np.sin(2 * np.pi * time / steps)
    logits = logits + rng.normal(0, 0.05, (steps, layers, heads))
    return np.asarray(1 / (1 + np.exp(-logits)))


def statistics(needs: Array, buckets: list[slice]) -> dict[str, float]:
    """What `WAN_14B` holds; `buckets`: steps of each bucket."""
    variance, by_head = needs.var(), needs.mean(0)
    parts = [needs[bucket] for bucket in buckets]
    return {
        "mean": needs.mean(),
        "covers 90 %": np.quantile(needs, 0.9),
        "covers 95 %": np.quantile(needs, 0.95),
        "heads below 0.05": (needs < 0.05).mean(),
        "heads above 0.5": (needs > 0.5).mean(),
        "first step": needs[0].mean(),
        "last step": needs[-1].mean(),
        "static": needs.max(0).mean(),
        "static in 3 buckets": sum(len(part) * part.max(0).mean() for part in parts) / len(needs),
        "variance between layers": by_head.mean(1).var() / variance,
        "variance within a head": ((needs - by_head) ** 2).mean() / variance,
        "variance within a head and bucket": sum(((p - p.mean(0)) ** 2).sum() for p in parts) / needs.size / variance,
    }
