"""How deep a launch lies below the core call: few frames are few places to look at, and little time."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.policy import Policy
from tests.core.cases import RANKED
from tests.kernels.launches import Launches

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("draftattn_core", "kernels")
MOST = 6


@pytest.mark.parametrize("backend", ["triton", "triton_hopper"])
@pytest.mark.parametrize("method", RANKED)
def test_a_launch_lies_at_most_six_frames_below_the_core_call(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, method: str, backend: str
) -> None:
    """Frames of the pack from `attend` on, that one included."""
    seen: list[list[str]] = []

    def look(noted: Launches, *_: Any, **__: Any) -> None:
        # By folder, since an environment may lie inside the clone and its packages are not ours.
        files = [(Path(frame.filename), frame.function) for frame in inspect.stack()]
        names = [name for file, name in files if any(file.is_relative_to(ROOT / room) for room in ROOMS)]
        seen.append(names[: names.index("attend") + 1][::-1])

    monkeypatch.setattr(Launches, "run", look)
    layout = Layout(TokenGrid(3, 9, 13), 7, 30)
    q, k, v = torch.zeros(3, 1, 2, layout.tokens, 64, dtype=torch.bfloat16)
    # Without warps to read, which launches that are not made do not have.
    attend(q, k, v, layout, Policy(density=0.4, method=method), backend=backend)
    assert len(seen) > 3
    assert all(names[0] == "attend" for names in seen)
    assert max(len(names) for names in seen) <= MOST, max(seen, key=len)
