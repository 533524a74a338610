"""Runs of tiny diffusers transformers as a pipeline makes them: its loop with guidance, and the pack applied to it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from draftattention.draftattn_core import Schedule, Settings
from draftattention.draftattn_core.hosts.diffusers.apply import DraftAttentionHandle, apply_draft_attention

SMALL = {"q_block": 16, "k_block": 8, "auto_gain": False}
SPARSE = Settings(schedule=Schedule(((0.0, 0.3),)), **SMALL)
DENSE = Settings(schedule=Schedule(((0.0, 1.0),)), **SMALL)


def guided(model: Any, scheduler: Any, inputs: dict[str, Any], steps: int, stop: int | None = None) -> Tensor:
    """A pipeline's loop with guidance, condition first; the texts are the same tensors at every step, and so are the
    channels of conditions behind the latent. Returns the last latent.

    Args:
        stop: the step before which it is interrupted, as a pipeline does it: by going through the rest idly.
    """
    text = inputs["encoder_hidden_states"]
    channels = model.config.out_channels
    latents, conditions = inputs["hidden_states"][:, :channels], inputs["hidden_states"][:, channels:]
    scheduler.set_timesteps(steps)
    other = -text
    for index, t in enumerate(scheduler.timesteps):
        if stop is not None and index >= stop:
            continue
        states = torch.cat([latents, conditions], 1)
        here = {**inputs, "hidden_states": states, "timestep": t.expand(latents.shape[0])}
        velocity = model(**here, return_dict=False)[0]
        uncond = model(**{**here, "encoder_hidden_states": other}, return_dict=False)[0]
        latents = scheduler.step(uncond + 2.0 * (velocity - uncond), t, latents, return_dict=False)[0]
    return latents


def applied(model: Any, cache: Any | None, settings: Settings = SPARSE) -> tuple[DraftAttentionHandle, Any]:
    """The pack on a model with a step cache of the test's own, None for the one of the settings, and a scheduler."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    handle = apply_draft_attention(model, settings, scheduler=scheduler)
    if cache is not None:
        handle.new_step_cache = lambda: cache
    return handle, scheduler


def calls_of(model: Any) -> list[int]:
    """Grows with every call of the model's first block."""
    calls: list[int] = []
    blocks = model.blocks if hasattr(model, "blocks") else model.transformer_blocks
    blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def compiled_alone(model: Any) -> tuple[Any, Any]:
    """The model compiled as if nothing had been before, and torch's counts of what it compiles."""
    import torch._dynamo
    import torch._dynamo.utils

    torch._dynamo.reset()
    stats = torch._dynamo.utils.counters["stats"]
    stats.clear()
    return torch.compile(model, backend="eager"), stats
