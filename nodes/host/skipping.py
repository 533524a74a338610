"""Skipping steps on a model: the choice travels in its transformer_options, whichever node's adapter opens the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ...draftattn_core.phrase import Text
from ...draftattn_core.run.step_cache import StepCacheSettings, nothing_to_gain
from ...draftattn_core.run.step_cache.others import names_cache
from ..words import Words

SKIP = "draft_attention_skip_steps"
# Where a pack's cache may replace what a model runs.
FORWARDS = ("diffusion_model.forward", "diffusion_model._forward", "diffusion_model.forward_orig")


def chosen(options: Mapping[str, Any]) -> StepCacheSettings | None:
    """What a Skip Steps node asked for; None where there is none."""
    found = options.get(SKIP)
    return found if isinstance(found, StepCacheSettings) else None


def settle(
    settings: StepCacheSettings, steps: int, model_options: Mapping[str, Any], patcher: Any
) -> tuple[StepCacheSettings, Text | None]:
    """What a run of so many steps will do, and in a sentence why that is nothing, if it was to be something.

    Args:
        settings: asked for by a Skip Steps node, or else by `speed`.
        model_options: of the run. patcher: the host's ModelPatcher.
    """
    if settings.rule == "off":
        return settings, None
    reason = nothing_to_gain(settings, steps)
    if reason is not None:
        return StepCacheSettings(), Words("skip_none", reason=reason)
    other = rival(settings, steps, model_options, patcher)
    if other is None:
        return settings, None
    by_node = chosen(model_options.get("transformer_options") or {}) is not None
    return StepCacheSettings(), Words("skip_other_cache" if by_node else "speed_other_cache", cache=other)


def rival(settings: StepCacheSettings, steps: int, model_options: Mapping[str, Any], patcher: Any) -> str | None:
    """Name of another node's cache, where ours would skip steps of the run, too; None if the two do not meet."""
    if settings.rule == "off" or nothing_to_gain(settings, steps) is not None:
        return None
    return other_cache(model_options, patcher)


def other_cache(model_options: Mapping[str, Any], patcher: Any) -> str | None:
    """Name of a step cache of another node on this model; None if there is none."""
    return next((name for name in _names(model_options, patcher) if names_cache(name)), None)


def _names(model_options: Mapping[str, Any], patcher: Any) -> Iterator[str]:
    """Keys of wrappers and options, and where the functions come from that stand before the model."""
    options = model_options.get("transformer_options") or {}
    # ComfyUI's LazyCache keeps its holder as an option "easycache", and only its wrappers under its own name.
    for wrappers in ((options.get("wrappers") or {}), getattr(patcher, "wrappers", {})):
        for by_key in wrappers.values():
            for key, functions in by_key.items():
                yield str(key)
                yield from map(_source, functions)
    yield from (str(key) for key in options if key != SKIP)
    network = getattr(getattr(patcher, "model", None), "diffusion_model", None)
    patches: Mapping[str, Any] = getattr(patcher, "object_patches", {})
    # A replaced forward stands in the network once it is loaded, before that in the patcher alone.
    later = (function for name, function in patches.items() if name in FORWARDS)
    now = (model_options.get("model_function_wrapper"), getattr(network, "__dict__", {}).get("forward"))
    yield from (_source(function) for function in (*now, *later) if function is not None)


def _source(function: Any) -> str:
    """Module and name of a function or of an object that is called."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
