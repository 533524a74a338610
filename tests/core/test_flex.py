"""The FlexAttention backend: its block lists and second pass against the definition, and compiled once for real."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention
from torch import Tensor

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends import tail_pass
from draftattention.draftattn_core.backends.call_kind import CallKind
from draftattention.draftattn_core.backends.flex import attend as flex
from draftattention.draftattn_core.backends.flex import on_cpu as folding
from draftattention.draftattn_core.backends.flex.attend import attend_flex, flex_refuses
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.registry import choose_backend
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.backends.tail_pass import merge_tail
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.policy import TAILS, Policy, TailName
from tests.core.cases import make_request, relative, small_layout, smooth_qkv
from tests.core.flex_stand_in import emulated

LIMITS = {torch.float32: 2e-6, torch.float16: 7e-4, torch.bfloat16: 5e-3}


def check(request: AttendRequest, run: Any = emulated) -> None:
    """Against the definition, as on GPUs and as on the CPU."""
    exact = attend_reference(replace(request, q=request.q.double(), k=request.k.double(), v=request.v.double()))
    for folded in (True, False):
        out = attend_flex(request, run, folded=folded)
        assert out.dtype == request.q.dtype and out.transpose(1, 2).is_contiguous()
        assert relative(out, exact) <= LIMITS[out.dtype]


@pytest.mark.parametrize("name", [*TAILS, "each its own"])
@pytest.mark.parametrize(
    ("grid", "before", "after", "q_block", "k_block"),
    [((3, 5, 7), 5, 12, 16, 8), ((3, 5, 7), 0, 0, 8, 16), ((4, 4, 8), 0, 16, 16, 16), ((1, 1, 1), 0, 3, 8, 8)],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True])
def test_lists_masks_and_merged_tail(
    name: str, grid: tuple[int, int, int], before: int, after: int, q_block: int, k_block: int, bias: bool
) -> None:
    layout = small_layout(grid, before, after, q_block, k_block)
    q, k, v = smooth_qkv(layout, batch=2, heads=5, dtype=torch.float32)
    key_bias = torch.randn(2, layout.extra) if bias and layout.extra else None
    if key_bias is not None:
        key_bias[0, 1:] = -torch.inf
    tail = TAILS if name == "each its own" else name
    check(make_request(q, k, v, layout, Policy(density=0.3, tail=tail), key_bias))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    layout = small_layout((3, 5, 7), 0, 5)
    q, k, v = smooth_qkv(layout, dim=64, dtype=dtype)
    check(make_request(q, k, v, layout, Policy(density=0.3, tail="linear1")))


@pytest.mark.parametrize("name", ["mean", "linear1"])
def test_rows_that_only_the_tail_serves(name: TailName) -> None:
    layout = small_layout()
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    request = make_request(q, k, v, layout, Policy(density=0.3, tail=name))
    keep = request.keep.clone()
    keep[:, :, ::2] = False
    check(replace(request, keep=keep))


@pytest.mark.parametrize("factor", [1e3, -1e3, 30.0])
@pytest.mark.parametrize("name", ["mean", ("none", "mean")], ids=str)
def test_a_row_or_its_tail_that_underflows_beside_the_other(name: TailName, factor: float) -> None:
    """The sink's level must lie near both folded, or a mass that counts is lost (on_cpu.py)."""
    layout = small_layout((3, 5, 7), 0, 4)
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    request = make_request(q * factor, k, v, layout, Policy(density=0.3, tail=name))
    # The other way round as well: what is kept is then what counts least.
    turned = request.keep.clone()
    turned[:, 1, : request.tables.q.video, : request.tables.k.video] ^= True
    for keep in (request.keep, turned):
        check(replace(request, keep=keep))


@pytest.mark.parametrize("name", ["none", "mean", "linear1"])
def test_a_vector_common_to_all_keys_changes_nothing(name: TailName) -> None:
    """Every logit is about -200 then, which float32 cannot exponentiate."""
    layout = small_layout((3, 5, 7), 0, 4)
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    request = make_request(q + 5, k, v, layout, Policy(density=0.3, tail=name))
    assert request.tail is not None or name == "none"
    shifted, tail = k - 10, request.tail
    if tail is not None:
        tail = replace(tail, k_mean=tail.k_mean - 10)
    expected = attend_reference(request)
    for folded in (True, False):
        out = attend_flex(replace(request, k=shifted, tail=tail), emulated, folded=folded)
        assert relative(out, expected) <= 2e-5


@pytest.mark.parametrize("folded", [True, False])
def test_groups_of_heads_and_rows_give_the_same(monkeypatch: pytest.MonkeyPatch, folded: bool) -> None:
    layout = small_layout((4, 7, 9), 0, 20)
    q, k, v = smooth_qkv(layout, heads=6, batch=2, dtype=torch.float32)
    request = make_request(q, k, v, layout, Policy(density=0.3))
    whole = attend_flex(request, emulated, folded=folded)
    calls = []

    def counted(q: Tensor, *others: Tensor, **options: Any) -> Any:
        calls.append(q.shape[1])
        return emulated(q, *others, **options)

    monkeypatch.setattr(flex, "_CHUNK_BYTES", 900_000)
    for module in (tail_pass, folding):
        monkeypatch.setattr(module, "SCRATCH_BYTES", 40_000)
    torch.testing.assert_close(attend_flex(request, counted, folded=folded), whole, rtol=0, atol=1e-6)
    assert len(calls) > 1 and len(set(calls)) == 1 and sum(calls) == 6


def test_versions_of_torch_that_return_the_sum_under_its_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.attention.flex_attention, "AuxRequest")
    layout = small_layout((3, 5, 7), 0, 5)
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    check(make_request(q, k, v, layout, Policy(density=0.3)))


def test_the_second_pass_alone_is_pooled_attention() -> None:
    layout = small_layout((4, 4, 8))
    q, k, v = smooth_qkv(layout)
    request = make_request(q, k, v, layout, Policy(density=0.0, tail="mean", keep_own=False))
    in_order = q[:, :, request.tables.perm]
    # What a kernel leaves in a row that kept nothing is not looked at.
    out = torch.full_like(in_order, torch.nan)
    merge_tail(out, torch.full(out.shape[:-1], -torch.inf), in_order, request)
    expected = attend_reference(request)[:, :, request.tables.perm]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)


def problem(**changes: Any) -> CallKind:
    fields = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "head_dim": 128, "q_block": 128, "k_block": 64}
    return CallKind(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": torch.device("mps")}, "not on mps"),
        ({"dtype": torch.float64}, "float64"),
        ({"head_dim": 8}, "head sizes from 16 to 256"),
        ({"k_block": 32}, "multiples of 64"),
    ],
)
def test_what_flex_cannot_serve_is_refused_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    refusal = flex_refuses(problem(**changes))
    assert refusal is not None and reason in refusal


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compiler", lambda: None)
    assert "C++ compiler" in str(flex_refuses(problem(device=torch.device("cpu"))))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton" in str(flex_refuses(problem()))
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    assert "from torch 2.7 on" in str(flex_refuses(problem()))


def test_on_the_cpu_it_serves_only_by_name() -> None:
    on_cpu = problem(device=torch.device("cpu"))
    assert choose_backend("auto", on_cpu).name == "torch"
    refusal = flex_refuses(on_cpu)
    if refusal is not None:
        pytest.skip(refusal)
    assert choose_backend("flex", on_cpu).name == "flex"


def compiled_or_skip(head_dim: int = 64) -> Any:
    """Counters of compilations in this process; skips where nothing can be compiled."""
    refusal = flex_refuses(problem(device=torch.device("cpu"), dtype=torch.float32, head_dim=head_dim))
    if refusal is not None:
        pytest.skip(refusal)
    return torch._dynamo.utils.counters["stats"]


def test_compiled_for_real_and_not_again_for_another_grid() -> None:
    """One compilation on the CPU (seconds), used for two grids, with the paper's method and hidden text."""
    compiled = compiled_or_skip()
    times = []
    for grid, after in (((3, 11, 17), 77), ((4, 9, 19), 33)):
        layout = Layout(TokenGrid(*grid), 0, after)
        q, k, v = smooth_qkv(layout, dim=64, dtype=torch.float32)
        bias = torch.zeros(1, after)
        bias[:, -5:] = -torch.inf
        before, start = compiled["unique_graphs"], time.perf_counter()
        with torch.inference_mode():  # as ComfyUI runs
            result = attend(q, k, v, layout, Policy(density=0.3, tail="none"), backend="flex", key_bias=bias)
        times.append((compiled["unique_graphs"] - before, time.perf_counter() - start))
        assert relative(result.out, attend_reference(result.request)) <= LIMITS[torch.float32]
    assert times[0][0] == 1, times
    assert times[1][0] == 0, times


@pytest.mark.parametrize("biased", [False, True])
def test_every_tail_compiled_for_real(biased: bool) -> None:
    """One compilation serves every tail, dtype and grid of one shape of heads, batch 2."""
    compiled = compiled_or_skip(32)
    before = compiled["unique_graphs"]
    for grid, extra in (((3, 5, 7), (5, 12)), ((2, 3, 31), (0, 4)), ((4, 4, 8), (3, 13))):
        layout = small_layout(grid, *extra)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            q, k, v = smooth_qkv(layout, batch=2, heads=5, dim=32, dtype=dtype)
            bias = torch.randn(2, layout.extra) if biased else None
            if bias is not None:
                bias[0, 1:] = -torch.inf
            for tail in (TAILS, "mean", "linear2"):
                policy = Policy(density=0.3, tail=tail)  # type: ignore[arg-type]
                with torch.inference_mode():
                    result = attend(q, k, v, layout, policy, backend="flex", key_bias=bias)
                request = result.request
                exact = attend_reference(replace(request, q=q.double(), k=k.double(), v=v.double()))
                assert relative(result.out, exact) <= LIMITS[dtype]
    assert compiled["unique_graphs"] - before <= 1
