"""What a call of the kernels takes beside its tensors: the formula against the allocator, and the target."""

from __future__ import annotations

import gc
import importlib.util
import weakref
from collections.abc import Callable

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from draftattention.draftattn_core.backends.triton import head_groups
from draftattention.draftattn_core.backends.triton.head_groups import extra_bytes
from draftattention.draftattn_core.backends.triton.pointer import run_triton
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import Policy, TailName
from tests.kernels.launches import Launches

# The shapes the memory target names: grid, text, heads.
VIDEOS = {
    "Wan 720p": ((21, 45, 80), 0, 40),
    "HunyuanVideo 1.5 720p": ((31, 45, 80), 1000, 16),
    "HunyuanVideo 720p": ((33, 45, 80), 256, 24),
}


def peak_bytes(run: Callable[[], object]) -> int:
    """Most memory torch's allocator held beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    del result
    return most


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(
    "policy",
    [Policy(), Policy(method="row", tail="none"), Policy(method="draft", tail="mean"), Policy(tail="linear2")],
    ids=lambda policy: f"{policy.method}-{policy.tail}",
)
def test_the_formula_is_what_the_allocator_says(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, policy: Policy, halves: bool
) -> None:
    monkeypatch.setattr(head_groups, "LEAST_PROGRAMS", 1 if halves else 1 << 30)
    layout = Layout(TokenGrid(8, 24, 32), 0, 100)
    tables = build_tables(layout)
    q, k, v = torch.zeros(3, 1, layout.tokens, 8, 128, dtype=torch.bfloat16).transpose(2, 3)
    output = q.numel() * q.itemsize
    run_triton(q, k, v, tables, policy, None, 0.1)
    found = peak_bytes(lambda: run_triton(q, k, v, tables, policy, None, 0.1)) - output
    expected = extra_bytes(layout, 1, 8, 128, torch.bfloat16, policy)
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("tail", ["linear1", "linear2"])
def test_at_most_keys_and_values_once_more(monkeypatch: pytest.MonkeyPatch, name: str, tail: TailName) -> None:
    grid, text, heads = VIDEOS[name]
    layout, policy = Layout(TokenGrid(*grid), 0, text), Policy(tail=tail)
    keys_and_values = 2 * layout.tokens * heads * 128 * 2
    assert extra_bytes(layout, 1, heads, 128, torch.bfloat16, policy) <= 0.77 * keys_and_values
    monkeypatch.setattr(head_groups, "LEAST_PROGRAMS", 1 << 30)
    assert extra_bytes(layout, 1, heads, 128, torch.bfloat16, policy) > keys_and_values


def test_small_calls_stay_in_one_piece() -> None:
    """A second launch of everything would cost them more than their memory is worth."""
    assert len(head_groups.head_groups(Layout(TokenGrid(5, 30, 52)), 1, 12)) == 1
    assert head_groups.head_groups(Layout(TokenGrid(21, 45, 80)), 1, 15) == (slice(0, 8), slice(8, 15))


def test_a_call_keeps_nothing_alive(launches: Launches) -> None:
    layout = Layout(TokenGrid(2, 8, 16))
    q, k, v = torch.zeros(3, 1, layout.tokens, 2, 128, dtype=torch.bfloat16).transpose(2, 3).unbind()
    out, request = run_triton(q, k, v, build_tables(layout), Policy(), None, 0.1)
    assert request.tail is not None
    left = [weakref.ref(x) for x in (q, out, request.keep, request.tail.k_mean)]
    gc.disable()
    try:
        del q, k, v, out, request
        assert [x() for x in left] == [None] * 4
    finally:
        gc.enable()
