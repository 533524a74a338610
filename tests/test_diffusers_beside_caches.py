"""Another cache on a diffusers transformer: told by where it stands and by its name, while plain wrappers are none."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import FirstBlockCacheConfig
from diffusers.hooks import HookRegistry, ModelHook, apply_first_block_cache, apply_layerwise_casting

from draftattention.draftattn_core.run.step_cache import StepCacheSettings
from tests.diffusers_models import MODELS, build
from tests.diffusers_runs import DENSE, applied, guided

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SKIP = replace(DENSE, skip=StepCacheSettings("spread", max_forecast_error=math.inf))


def teacache_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """As published scripts have one: a method of their own in place of the model's."""
    return type(self).plain_forward(self, *args, **kwargs)


class Plain:
    """Stands in for a forward, by a closure, a method or itself."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class MagCache(Plain):
    def closure(self) -> Callable[..., Any]:
        inner = self.inner

        def forward(*args: Any, **kwargs: Any) -> Any:
            return inner(*args, **kwargs)

        return forward


def by_the_name_of(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def teacache_forward(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    return teacache_forward


def around_with(helper: Any, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper that goes by the name of what it wraps, and has a helper."""

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        assert helper is not None
        return inner(*args, **kwargs)

    return forward


@contextmanager
def of_class(model: Any) -> Iterator[None]:
    cls = type(model)
    before = cls.forward
    cls.plain_forward, cls.forward = before, teacache_forward
    try:
        yield
    finally:
        cls.forward = before
        del cls.plain_forward


def instance(forward: Callable[[Any], Any]) -> Callable[[Any], AbstractContextManager[None]]:
    @contextmanager
    def put(model: Any) -> Iterator[None]:
        type(model).plain_forward = type(model).forward
        model.forward = forward(model)
        try:
            yield
        finally:
            del type(model).plain_forward

    return put


def as_accelerate_does(model: Any) -> None:
    """`accelerate.hooks.add_hook_to_module`, restated: accelerate need not be there."""
    old = model._old_forward = model.forward

    def new_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        return module._old_forward(*args, **kwargs)

    new_forward.__module__ = "accelerate.hooks"
    model.forward = functools.update_wrapper(functools.partial(new_forward, model), old)


@contextmanager
def under_accelerate(model: Any) -> Iterator[None]:
    with instance(lambda model: around_with(MagCache(max), model.forward))(model):
        as_accelerate_does(model)
        yield


HERE = __name__
# How each takes the forward over, and what it is called then.
CACHES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a method": (instance(lambda model: types.MethodType(teacache_forward, model)), "teacache_forward"),
    "a method of the class": (of_class, "teacache_forward"),
    "a partial": (instance(lambda model: functools.partial(teacache_forward, model)), "teacache_forward"),
    "a closure by a cache": (
        instance(lambda model: MagCache(model.forward).closure()),
        "MagCache.closure.<locals>.forward",
    ),
    "a closure around a cache": (instance(lambda model: around_with(MagCache(max), model.forward)), "MagCache"),
    "a cache's inherited method": (instance(lambda model: MagCache(model.forward).answer), "MagCache"),
    "a cache that is called": (instance(lambda model: MagCache(model.forward)), "MagCache"),
    "a wrapper by the model's name": (instance(lambda model: by_the_name_of(model.forward)), "teacache_forward"),
    "a cache under a hook of accelerate": (under_accelerate, "MagCache"),
}


def notes_of(handle: Any) -> list[str]:
    return [note for note in handle.report.notes if "skips no steps" in note]


@pytest.mark.parametrize("how", CACHES)
def test_a_forward_that_a_cache_has_taken_over_is_seen_and_the_run_skips_nothing(how: str) -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    put, name = CACHES[how]
    with put(model), torch.no_grad():
        handle, scheduler = applied(model, None, SKIP)
        with handle:
            guided(model, scheduler, inputs, 8)
    assert handle.report.outcomes == {"computed": 16} and handle.report.skip.rule == "off"
    assert notes_of(handle) == [
        f"DraftAttention skips no steps: another cache ({HERE}.{name}) is on this model; "
        "switch it off (disable_cache, if it is one of diffusers' own), or skip no steps"
    ]


def test_a_cache_that_came_after_ours_is_seen_at_the_next_run_and_forgotten_once_it_is_gone() -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    handle, scheduler = applied(model, None, SKIP)
    ours, told = model.forward, []
    with torch.no_grad(), handle:
        for forward in (ours, MagCache(ours).closure(), ours):
            model.forward = forward
            guided(model, scheduler, inputs, 8)
            told.append((len(notes_of(handle)), handle.report.outcomes["computed"]))
    assert told == [(0, 8), (1, 16), (0, 8)]


def test_a_cache_of_diffusers_own_that_was_applied_by_its_function_is_seen() -> None:
    """It is not enabled then, as `enable_cache` would have it, and only its hooks show it."""
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.1))
    assert not model.is_cache_enabled
    handle, scheduler = applied(model, None, SKIP)
    with torch.no_grad(), model.cache_context("cond"), handle:
        guided(model, scheduler, inputs, 8)
    assert handle.report.outcomes == {"computed": 16}
    assert ["(first_block_cache)" in note for note in notes_of(handle)] == [True]


def hooked_by_diffusers(model: Any) -> None:
    apply_layerwise_casting(model, torch.float32, torch.float32)
    HookRegistry.check_if_exists_or_initialize(model).register_hook(ModelHook(), "a hook")
    assert "forward" in vars(model)


def wrapped(model: Any) -> None:
    model.forward = around_with("log", model.forward)


@pytest.mark.parametrize("put", [as_accelerate_does, hooked_by_diffusers, wrapped])
def test_hooks_and_wrappers_that_answer_nothing_are_no_caches(put: Callable[[Any], None]) -> None:
    model, inputs = build("wan"), MODELS["wan"].inputs(1)
    put(model)
    handle, scheduler = applied(model, None, SKIP)
    with torch.no_grad(), handle:
        guided(model, scheduler, inputs, 8)
    assert notes_of(handle) == [] and handle.report.outcomes == {"computed": 8, "forecast": 8}
