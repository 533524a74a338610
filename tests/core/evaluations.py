"""Evaluations for tests of what is asked of a run."""

from __future__ import annotations

from typing import Any

import torch

from draftattention.draftattn_core.run.evaluation import Branch, Evaluation


def evaluation_at(step: int, steps: int = 20, **changes: Any) -> Evaluation:
    """A flow model's evaluation of one branch at a step of a run, levels falling evenly from 1."""
    given: dict[str, Any] = {
        "step": step,
        "sampler_step": step,
        "steps": steps,
        "progress": step / steps,
        "level": 1.0 - step / steps,
        "prediction": "flow",
        "denoised": None,
        "branches": (Branch("cond", slice(0, 1)),),
        "conditional": 0,
        "window": None,
        "expert": None,
        "device": torch.device("cpu"),
        "is_last": step == steps - 1,
    }
    return Evaluation(**(given | changes))
