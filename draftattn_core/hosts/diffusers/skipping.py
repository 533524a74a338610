"""Skipping steps in diffusers: which runs are better left alone, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from ...phrase import Phrase, Text
from ...run.step_cache import StepCacheSettings, nothing_to_gain
from ...run.step_cache.others import names_cache
from .clock import Tick

# Where the hooks of diffusers' own caches come from.
_OWN_CACHE = re.compile(r"diffusers\.hooks\.(\w+_cache|pyramid_attention_broadcast)")


def why_skip_nothing(skip: StepCacheSettings, tick: Tick, transformer: Any) -> Text | None:
    """Why a run that may skip steps is to compute them all; None if nothing speaks against it.

    Args:
        skip: what the pack's own step cache may do; its rule is "off" where another one answers in its place.
        tick: the first evaluation of the run.
    """
    # A plan is made for the whole list of timesteps; the other rules count from where the run enters it.
    before = 0 if skip.rule == "spread" else tick.sampler_step
    reason = None if tick.steps is None else nothing_to_gain(skip, tick.steps - before)
    if reason is not None:
        return Phrase("note_skips_nothing", "DraftAttention skips no steps: {why}", why=reason)
    cache = other_cache(transformer)
    if cache is None:
        return None
    return Phrase(
        "note_other_cache",
        "DraftAttention skips no steps: another cache ({cache}) is on this model; "
        "switch it off (disable_cache, if it is one of diffusers' own), or skip no steps",
        cache=cache,
    )


def other_cache(transformer: Any) -> str | None:
    """Name of another step cache on a transformer: of one of diffusers' own, enabled or applied by its function, or of
    what stands in for its `forward` or is called on the way to it. None if there is none."""
    if getattr(transformer, "is_cache_enabled", False):
        return type(getattr(transformer, "_cache_config", None)).__name__.removesuffix("Config")
    own = next(_own_caches(transformer), None)
    return own or next((name for name in _names_behind(transformer.forward) if names_cache(name)), None)


def _own_caches(transformer: nn.Module) -> Iterator[str]:
    """Names of the modules of diffusers whose caches have hooks on a transformer."""
    for module in transformer.modules():
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
            found = _OWN_CACHE.fullmatch(type(hook).__module__)
            if found is not None:
                yield found[1]


def _names_behind(function: Any) -> Iterator[str]:
    """Names of a function and of all that it wraps or holds: where functions were written, what they go by now, and the
    classes of objects."""
    left, seen = [function], set()
    while left:
        one = left.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, MethodType):
            left += [one.__func__, one.__self__]
        elif isinstance(one, partial):
            left += [one.func, *one.args, *one.keywords.values()]
        elif isinstance(one, FunctionType):
            # `functools.wraps` gives a wrapper the name of what it wraps, but not its code.
            yield f"{one.__module__}.{one.__qualname__}"
            yield f"{one.__globals__.get('__name__')}.{one.__code__.co_name}"
            left += [cell.cell_contents for cell in one.__closure__ or () if cell != CellType()]
        else:
            named = one if isinstance(one, type) else type(one)
            yield f"{named.__module__}.{named.__qualname__}"
        if isinstance(one, (FunctionType, partial)) and hasattr(one, "__wrapped__"):
            left.append(one.__wrapped__)
