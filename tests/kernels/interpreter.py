"""What the interpreted tests change in Triton's interpreter and in torch, for as long as they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

# Larger allocations stand for memory that is only reserved (`far.reserved`): to fill them would make it real.
_MOST_POISONED = 1 << 24


def patch_language_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter replaces the functions of triton.language at every call of a function within a kernel, which is
    a third of its time: once a launch is enough. What is computed stays the same."""
    from triton import language
    from triton.runtime import interpreter

    plain = interpreter._patch_lang
    if not hasattr(interpreter, "_LangPatchScope"):
        # A Triton before 3.7 has no scope to tell where a launch ends.
        return
    patched: set[tuple[bool, ...]] = set()

    class Scope(interpreter._LangPatchScope):  # type: ignore[misc]
        def restore(self) -> None:
            patched.clear()
            super().restore()

    def patch_lang(fn: Any) -> Any:
        # What is patched depends on these alone.
        seen = tuple(any(x is module for x in fn.__globals__.values()) for module in (language, language.core))
        if seen in patched:
            return Scope()
        scope = plain(fn)
        scope.__class__ = Scope
        patched.add(seen)
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", patch_lang)


def poison_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory from `torch.empty` holds NaN, or 0x7f in every byte: an element that a kernel does not write is seen."""

    def poisoned(allocate: Any) -> Any:
        def allocate_poisoned(*arguments: Any, **options: Any) -> Tensor:
            x: Tensor = allocate(*arguments, **options)
            if x.numel() > _MOST_POISONED:
                return x
            return x.fill_(torch.nan) if x.is_floating_point() else _bytes(x)

        return allocate_poisoned

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


def _bytes(x: Tensor) -> Tensor:
    x.view(torch.uint8).fill_(0x7F)
    return x
