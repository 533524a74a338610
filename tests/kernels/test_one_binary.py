"""A new resolution compiles nothing: calls of every length, grid, batch and head count take the same binaries."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton
import triton.language as tl

from draftattention.draftattn_core.backends.triton import machine
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import Policy, TailName
from draftattention.kernels.attend_pointer import constexprs
from draftattention.kernels.configs import attend_config
from draftattention.kernels.select import lists_of
from draftattention.kernels.types import AttendInputs, Geometry, Selected
from tests.kernels.calls import run_call
from tests.kernels.launches import Launches

# Grid, extra tokens before and after, heads, batch: numbers that are 1, odd, and multiples of 16, in turns.
SHAPES = [
    ((3, 9, 13), 7, 30, 2, 1),
    ((1, 8, 16), 0, 1, 1, 1),
    ((5, 9, 16), 0, 16, 5, 1),
    ((4, 8, 8), 0, 128, 16, 2),
    ((2, 7, 9), 1, 0, 7, 3),
]


def call(shape: tuple[tuple[int, int, int], int, int, int, int], policy: Policy) -> None:
    grid, before, after, heads, batch = shape
    layout = Layout(TokenGrid(*grid), before, after)
    qkv = torch.empty(3, batch, layout.tokens, heads, 128, dtype=torch.bfloat16).transpose(2, 3)
    bias = torch.zeros(1, layout.extra)
    run_call(*qkv.unbind(), build_tables(layout), policy, bias, 0.1)


@pytest.mark.parametrize("tail", ["none", "mean", "linear1"])
@pytest.mark.parametrize("method", ["row", "head", "top_p", "draft"])
def test_one_binary_per_kernel_for_all_shapes(launches: Launches, method: str, tail: TailName) -> None:
    policy = Policy(density=0.4, method=method, tail=tail)
    call(SHAPES[0], policy)
    first = launches.binaries
    assert all("('enable_fp_fusion', True)" in key for _, key in first)
    assert len(first) == len({name for name, _ in first})
    for shape in SHAPES[1:]:
        call(shape, policy)
    assert launches.binaries == first


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89"])
@pytest.mark.parametrize("tail", ["none", "linear1"])
def test_one_binary_per_kernel_with_int8_scores(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, architecture: str, tail: TailName
) -> None:
    """With sums in float32, and in float16 where those are faster."""
    monkeypatch.setattr(machine, "architecture", lambda device: architecture)
    policy = Policy(density=0.4, tail=tail, bits=8)
    call(SHAPES[0], policy)
    first = launches.binaries
    attend = next(key for name, key in first if name == "attend_kernel")
    assert "i8" in attend and ("fp16" in attend) is (architecture == "sm_89")
    assert len(first) == len({name for name, _ in first})
    for shape in SHAPES[1:]:
        call(shape, policy)
    assert launches.binaries == first


def test_lists_of_a_given_map(launches: Launches) -> None:
    for rows, columns in ((1, 1), (5, 37), (16, 64)):
        lists_of(torch.ones(1, 2, rows, columns, dtype=torch.bool))
    assert len(launches.binaries) == 1


def test_a_batch_of_one_beyond_two_to_the_31_elements(launches: Launches) -> None:
    """Its batch stride is a 64-bit number that no address needs."""
    layout = Layout(TokenGrid(1, 8, 16))
    q, k, v = torch.empty(3, 1, layout.tokens, 2, 128, dtype=torch.bfloat16).transpose(2, 3)

    def long(x: Tensor) -> Tensor:
        return x.as_strided(x.shape, (1 << 33, *x.stride()[1:]))

    for inputs in ((q, k, v), (long(q), long(k), long(v))):
        run_call(*inputs, build_tables(layout), Policy(density=0.4), None, 0.1)
    assert len(launches.binaries) == len({name for name, _ in launches.binaries})


def test_nothing_of_a_binary_depends_on_the_layout_but_its_blocks() -> None:
    """Compile-time constants of `attend` come from sizes that a user sets, not from what a resolution brings."""
    perm = torch.arange(999)
    config = attend_config("sm_90", 128, 1)
    q = torch.empty(1, 1, 1, 128)
    selected = Selected(perm, perm, perm)
    known = [
        constexprs(AttendInputs(q, q, q, Geometry(n, n - 7, 128, 64, perm), selected, None, None, 0.1), config, False)
        for n in (999, 640)
    ]
    assert known[0] == known[1]


@triton.jit
def _specialised(x_ptr, length, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(x_ptr, length)


def test_the_key_sees_what_these_tests_are_about(launches: Launches) -> None:
    """A kernel without `do_not_specialize` would compile for 1, for multiples of 16 and for the rest."""
    x = torch.empty(64, dtype=torch.int32)
    for length in (1, 15, 16, 17, 32):
        _specialised[(1,)](x, length, BLOCK=16)
    assert len(launches.binaries) == 3
    _specialised[(1,)](x[1:], 15, BLOCK=16)
    assert len(launches.binaries) == 4
