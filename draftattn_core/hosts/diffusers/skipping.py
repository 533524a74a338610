"""Skipping steps in diffusers: which runs are better left alone, and why."""

from __future__ import annotations

from typing import Any

from ...phrase import Phrase, Text
from ...run.step_cache import StepCacheSettings, nothing_to_gain
from .clock import Tick


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
        "call disable_cache on it, or skip no steps",
        cache=cache,
    )


def other_cache(transformer: Any) -> str | None:
    """Name of another cache on a transformer, one of diffusers' own (`enable_cache`); None if there is none."""
    if not getattr(transformer, "is_cache_enabled", False):
        return None
    return type(getattr(transformer, "_cache_config", None)).__name__.removesuffix("Config")
