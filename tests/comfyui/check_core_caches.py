"""Runs in ComfyUI's Python: the frontier's re-statement of core's EasyCache and LazyCache decides as the nodes do.

Core's own nodes sample; what they see and answer is recorded from outside, and the re-statement is led along the same
latents.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import host
import torch
from toy_runs import node, run, wan

CHECKS, check = host.registry()
STEPS = 20
# The toy model has random weights, so its output changes far more from step to step than a trained one's.
THRESHOLDS = (0.2, 2.0, 20.0)
WINDOWS = ((0.15, 0.95), (0.0, 1.0))
# Wider than eight, of which every eighth row and column is compared.
WIDE = torch.zeros(1, 16, 2, 10, 18)


@dataclass
class Seen:
    """One evaluation: what went in, what came out, and whether the model was called."""

    level: float
    x: torch.Tensor
    y: torch.Tensor
    computed: bool = False


def rule_class() -> Any:
    """Loaded by itself: it needs nothing of the pack."""
    path = host.PACK_ROOT / "benchmarks" / "frontier" / "core_rules.py"
    spec = importlib.util.spec_from_file_location("core_rules", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CoreRule


def recorded(name: str, wrapped: str, threshold: float, window: tuple[float, float]) -> tuple[list[Seen], list[float]]:
    """A run with core's node.

    Args:
        name: of the node.
        wrapped: what it wraps: "diffusion_model", or "predict_noise", which sees the sampler's latent.

    Returns:
        The evaluations, and the window's noise levels.
    """
    seen: list[Seen] = []
    model = wan()

    def outside(executor: Any, *args: Any, **kwargs: Any) -> Any:
        # A copy: the node adds to the latent in place.
        if wrapped == "diffusion_model":
            level = float(args[-1]["sigmas"][0])
        else:
            level = float(args[1][0])
        seen.append(Seen(level, args[0].clone(), torch.empty(0)))
        out = executor(*args, **kwargs)
        seen[-1].y = out.clone()
        return out

    def inside(executor: Any, *args: Any, **kwargs: Any) -> Any:
        seen[-1].computed = True
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(wrapped, "outside", outside)
    model = node("nodes_easycache", name).execute(model, threshold, *window, False).args[0]
    model.add_wrapper_with_key("diffusion_model", "inside", inside)
    run(model, WIDE, steps=STEPS)
    sampling = model.get_model_object("model_sampling")
    return seen, [float(torch.tensor(sampling.percent_to_sigma(share))) for share in window]


def compare(name: str, wrapped: str, *, lazy: bool) -> None:
    """Raises where a decision or an answer differs."""
    counts: dict[object, int] = {}
    for window in WINDOWS:
        for threshold in THRESHOLDS:
            seen, levels = recorded(name, wrapped, threshold, window)
            assert len(seen) == STEPS
            rule = rule_class()(threshold, *levels, lazy=lazy)
            for index, one in enumerate(seen):
                where = (name, threshold, window, index)
                found = rule.answer(one.x, one.level)
                assert (found is None) == one.computed, where
                if found is None:
                    rule.store(one.x, one.y, one.level)
                else:
                    assert torch.equal(found, one.y), where
            counts[threshold, window] = sum(not one.computed for one in seen)
    # Neither all nor nothing, or there was no decision to compare.
    assert any(3 <= count <= STEPS - 6 for count in counts.values()), counts
    assert max(counts.values()) > min(counts.values()), counts


@check("The frontier's row of core's EasyCache decides and answers step by step as core's node does")
def _() -> None:
    compare("EasyCacheNode", "diffusion_model", lazy=False)


@check("The frontier's row of core's LazyCache decides and answers step by step as core's node does")
def _() -> None:
    compare("LazyCacheNode", "predict_noise", lazy=True)
