"""What holds for every interpreted test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernels.interpreter import patch_language_once, poison_allocations


@pytest.fixture(autouse=True, scope="session")
def fast_interpreter() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch_language_once(monkeypatch)
        yield


@pytest.fixture(autouse=True)
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_allocations(monkeypatch)
