"""What a call of the kernels takes beside its tensors, by torch's allocator, and the target."""

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
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import Policy, TailName
from tests.kernels.calls import run_call
from tests.kernels.launches import Launches

# The shapes the memory target names: grid and text.
VIDEOS = {
    "Wan 720p": ((21, 45, 80), 0),
    "HunyuanVideo 1.5 720p": ((31, 45, 80), 1000),
    "HunyuanVideo 720p": ((33, 45, 80), 256),
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


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("tail", ["linear1", "linear2"])
def test_at_most_keys_and_values_once_more(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, name: str, tail: TailName
) -> None:
    """Beside q, k, v, the output and index tables, with heads in halves as calls of this size have them."""
    grid, text = VIDEOS[name]
    layout, policy, heads = Layout(TokenGrid(*grid), 0, text), Policy(tail=tail), 8
    tables = build_tables(layout)
    # Memory that nobody writes is never there.
    q, k, v = torch.empty(3, 1, layout.tokens, heads, 128, dtype=torch.bfloat16).transpose(2, 3)
    keys_and_values = 2 * k.numel() * k.itemsize

    def peak(least_programs: int) -> int:
        monkeypatch.setattr(head_groups, "LEAST_PROGRAMS", least_programs)
        run_call(q, k, v, tables, policy)
        return peak_bytes(lambda: run_call(q, k, v, tables, policy)) - q.numel() * q.itemsize

    assert peak(1) <= 0.77 * keys_and_values < keys_and_values < peak(1 << 30)


def test_int8_keys_take_less(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies of K and V are three quarters of what they are in 16 bits."""
    grid, text = VIDEOS["HunyuanVideo 720p"]
    layout, heads = Layout(TokenGrid(*grid), 0, text), 8
    tables = build_tables(layout)
    q, k, v = torch.empty(3, 1, layout.tokens, heads, 128, dtype=torch.bfloat16).transpose(2, 3)
    monkeypatch.setattr(head_groups, "LEAST_PROGRAMS", 1)

    def peak(policy: Policy) -> int:
        run_call(q, k, v, tables, policy)
        return peak_bytes(lambda: run_call(q, k, v, tables, policy))

    saved = k.numel() // 2
    assert 0.9 * saved < peak(Policy()) - peak(Policy(bits=8)) <= saved


class TestHeadGroups:
    """Heads with scores of 8 and of 16 bits are computed by different kernels."""

    SMALL, LARGE = Layout(TokenGrid(5, 30, 52)), Layout(TokenGrid(21, 45, 80))

    def test_alike_they_are_grouped_as_ever(self) -> None:
        for layout in (self.SMALL, self.LARGE):
            bits = head_groups.settled_bits(layout, 1, (8,) * 40)
            assert bits == (8,) * 40
            assert head_groups.groups_by_bits(layout, 1, bits) == head_groups.head_groups(layout, 1, 40)

    def test_a_run_that_would_leave_a_gpu_idle_joins_its_neighbours(self) -> None:
        assert head_groups.settled_bits(self.SMALL, 1, (8, 16, *(8,) * 10)) == (16, 16, *(8,) * 10)
        assert head_groups.settled_bits(self.LARGE, 1, (8, 16, *(8,) * 10)) == (8, 16, *(8,) * 10)

    def test_each_run_is_a_group_or_two(self) -> None:
        groups = head_groups.groups_by_bits(self.LARGE, 1, (16, *(8,) * 20, 16, 16))
        assert groups == (slice(0, 1), slice(1, 11), slice(11, 21), slice(21, 23))


def test_small_calls_stay_in_one_piece() -> None:
    """A second launch of everything would cost them more than their memory is worth."""
    assert len(head_groups.head_groups(Layout(TokenGrid(5, 30, 52)), 1, 12)) == 1
    assert head_groups.head_groups(Layout(TokenGrid(21, 45, 80)), 1, 15) == (slice(0, 8), slice(8, 15))


def test_a_call_keeps_nothing_alive(launches: Launches) -> None:
    layout = Layout(TokenGrid(2, 8, 16))
    q, k, v = torch.zeros(3, 1, layout.tokens, 2, 128, dtype=torch.bfloat16).transpose(2, 3).unbind()
    out, request = run_call(q, k, v, build_tables(layout), Policy(), None, 0.1)
    assert request.tail is not None
    left = [weakref.ref(x) for x in (q, out, request.keep, request.tail.k_mean)]
    gc.disable()
    try:
        del q, k, v, out, request
        assert [x() for x in left] == [None] * 4
    finally:
        gc.enable()
