"""Fixtures of the kernel tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kernels.launches import Launches


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Every launch of a Triton kernel from here to the end of the test is noted and not run, and not judged either."""
    from triton.runtime.jit import JITFunction

    from draftattention.draftattn_core.backends.triton import machine, self_check
    from tests.kernels.launches import Launches

    noted = Launches()
    monkeypatch.setattr(JITFunction, "run", lambda kernel, *args, **kwargs: noted.run(kernel, *args, **kwargs))
    monkeypatch.setattr(machine, "interpreted", lambda: True)
    monkeypatch.setattr(self_check, "judge", lambda *_: None)
    return noted
