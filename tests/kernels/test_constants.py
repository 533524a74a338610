"""What the kernels are given beside tensors of the call: the same from tables that have served other policies."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from draftattention.draftattn_core.backends.triton import launch
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, LayoutTables, build_tables
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.selection import forced_blocks, ranking_of
from draftattention.kernels import prepare
from tests.core.cases import RANKED
from tests.kernels.calls import call_of
from tests.kernels.launches import Launches

LAYOUT = Layout(TokenGrid(3, 16, 16), 7, 30, tile=(1, 8, 16))
HEADS = 3
BASE = Policy(density=(0.1, 0.2, 0.3))
# Each differs from the first in one thing.
POLICIES = [
    BASE,
    replace(BASE, density=(0.1, 0.2, 0.32)),
    replace(BASE, floor=0.9),
    replace(BASE, tail="none"),
    replace(BASE, tail=("none", "linear1", "mean")),
    replace(BASE, tail_gain=0.5),
    replace(BASE, tail_gain=(0.5, 0.25, 0.0)),
    replace(BASE, keep_own=False),
    replace(BASE, keep_first_frame=True),
    replace(BASE, keep_last_frame=True),
    # What the rows are promised passes the budget, by more the higher the floor.
    replace(BASE, density=5 / 12, keep_first_frame=True),
    replace(BASE, density=5 / 12, keep_first_frame=True, floor=1.0),
]


def given(monkeypatch: pytest.MonkeyPatch, tables: LayoutTables, policy: Policy, part: slice) -> list[Any]:
    """What a call gives `select` and `prepare_keys`."""
    noted: list[Any] = []
    prepare_keys = prepare.prepare_keys

    def note_prepare(*args: Any, **options: Any) -> Any:
        noted.extend([options["log_weight"], options["ranks"]])
        return prepare_keys(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(prepare, "prepare_keys", note_prepare)
        x = torch.zeros(1, HEADS, LAYOUT.tokens, 64, dtype=torch.bfloat16)
        call = call_of(x, x, x, tables, policy).of_heads(part)
        launch.prepare(call, copy=False)
        limits = ranking_of(policy).limits(tables, policy, call.heads.densities)
        noted.extend([forced_blocks(tables, policy), limits.rows, limits.heads])
    return noted


@pytest.mark.parametrize("method", RANKED)
def test_no_policy_gets_what_is_anothers(launches: Launches, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    used = build_tables(LAYOUT)
    for policy in POLICIES * 2:
        for part in (slice(0, 2), slice(2, 3), slice(0, 3)):
            policy = replace(policy, method=method)  # type: ignore[arg-type]
            found = given(monkeypatch, used, policy, part)
            expected = given(monkeypatch, build_tables(LAYOUT), policy, part)
            for ours, fresh in zip(found, expected, strict=True):
                assert (ours is None) == (fresh is None)
                if ours is not None:
                    assert torch.equal(ours, fresh) and ours.dtype == fresh.dtype
                    assert ours.is_contiguous() and ours.data_ptr() % 16 == 0
