"""Every backend against the definition, over grids, extra tokens, masks, dtypes, head sizes, strides and tails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from draftattention.draftattn_core.attention import attend, draft_attention
from draftattention.draftattn_core.backends import reference
from draftattention.draftattn_core.backends import torch_chunks as chunks
from draftattention.draftattn_core.backends.call_kind import CallKind
from draftattention.draftattn_core.backends.cpu import rows
from draftattention.draftattn_core.backends.cpu.rows import attend_rows
from draftattention.draftattn_core.backends.flex import attend as flex
from draftattention.draftattn_core.backends.flex.attend import attend_flex
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.registry import (
    NoBackendError,
    attend_torch,
    backend_names,
    choose_backend,
)
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.backends.torch_chunks import attend_chunks, plan_groups
from draftattention.draftattn_core.geometry.blocks import block_means
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.geometry.order import ORDERS
from draftattention.draftattn_core.method.policy import TAILS, Policy, TailName
from draftattention.draftattn_core.run.probe import probe_errors
from tests.core.cases import blocks_of, make_request, relative, small_layout, smooth_qkv
from tests.core.flex_stand_in import emulated


def attend_flex_uncompiled(request: AttendRequest) -> Tensor:
    """The flex backend as on the CPU, where FlexAttention returns no log-sum-exp; test_flex.py compiles it for real."""
    return attend_flex(request, emulated)


BACKENDS = {"rows": attend_rows, "chunks": attend_chunks, "flex": attend_flex_uncompiled}
# kernels.md section 5 for half precision; the others leave room for the order of a sum only.
LIMITS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
Attend = Callable[[AttendRequest], Tensor]


@pytest.fixture(params=BACKENDS)
def attend_with(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attend]:
    """Each backend, its output filled with NaN before it starts: what it does not write shows."""

    def poisoned(q: Tensor) -> Tensor:
        batch, heads, length, dim = q.shape
        out = torch.full((batch, length, heads, dim), torch.nan, dtype=q.dtype, device=q.device)
        return out.transpose(1, 2)

    for module in (chunks, flex, reference, rows):
        monkeypatch.setattr(module, "new_output", poisoned)
    yield BACKENDS[request.param]


def check(attend_with: Attend, request: AttendRequest) -> Tensor:
    """Run a backend and hold its output against the definition."""
    out = attend_with(request)
    exact = attend_reference(request)
    assert out.dtype == request.q.dtype
    assert out.shape == request.q.shape
    assert out.isfinite().all()
    assert relative(out, exact_in_float64(request)) <= LIMITS[out.dtype]
    assert out.transpose(1, 2).is_contiguous() == exact.transpose(1, 2).is_contiguous() is True
    return out


def exact_in_float64(request: AttendRequest) -> Tensor:
    """The definition on the request's own inputs, without rounding the result to their dtype."""
    return attend_reference(replace(request, q=request.q.double(), k=request.k.double(), v=request.v.double()))


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize(
    ("grid", "before", "after", "q_block", "k_block"),
    [
        ((3, 5, 7), 0, 0, 16, 8),
        ((3, 5, 7), 5, 12, 16, 8),
        ((1, 1, 1), 0, 3, 16, 8),
        ((1, 13, 11), 7, 0, 8, 16),
        ((4, 4, 8), 0, 16, 16, 16),
        ((2, 3, 31), 0, 0, 8, 8),
    ],
    ids=str,
)
def test_odd_grids_and_extra_tokens(
    attend_with: Attend, name: TailName, grid: tuple[int, int, int], before: int, after: int, q_block: int, k_block: int
) -> None:
    layout = small_layout(grid, before, after, q_block, k_block)
    q, k, v = smooth_qkv(layout, batch=2, dtype=torch.float32)
    check(attend_with, make_request(q, k, v, layout, Policy(density=0.25, tail=name)))


@pytest.mark.parametrize("order", ORDERS)
def test_every_order(attend_with: Attend, order: str) -> None:
    layout = replace(small_layout((3, 5, 7), 2, 3), order=order)
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    check(attend_with, make_request(q, k, v, layout, Policy(density=0.3)))


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", ["none", "linear2"])
def test_dtypes_and_head_sizes(attend_with: Attend, dtype: torch.dtype, dim: int, name: TailName) -> None:
    layout = small_layout((3, 5, 7), 0, 5)
    q, k, v = smooth_qkv(layout, batch=2, dim=dim, dtype=dtype)
    check(attend_with, make_request(q * 2, k, v, layout, Policy(density=0.3, tail=name)))


@pytest.mark.parametrize(("q_block", "k_block", "tile"), [(128, 64, None), (128, 128, (1, 8, 16)), (64, 128, None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_real_block_sizes(
    attend_with: Attend, dtype: torch.dtype, q_block: int, k_block: int, tile: tuple[int, int, int] | None
) -> None:
    layout = Layout(TokenGrid(5, 11, 17), 0, 77, q_block, k_block, tile)
    q, k, v = smooth_qkv(layout, dim=64, dtype=dtype)
    check(attend_with, make_request(q, k, v, layout, Policy(density=0.3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_errs_no_more_than_twice_plain_torch(attend_with: Attend, dtype: torch.dtype) -> None:
    layout = small_layout((4, 7, 9))
    q, k, v = smooth_qkv(layout, dim=64, dtype=dtype)
    request = make_request(q * 3, k, v, layout, Policy(density=0.3, tail="none"))
    exact = exact_in_float64(request)
    tables = request.tables
    kept = request.keep[:, :, tables.q.of_token[tables.inverse]][..., tables.k.of_token[tables.inverse]]
    logits = torch.matmul(request.q, k.transpose(-1, -2)) * request.scale
    plain = torch.matmul(logits.masked_fill(~kept, -torch.inf).softmax(-1), v)
    worst = float((plain.double() - exact).abs().max())
    assert float((attend_with(request).double() - exact).abs().max()) <= 2 * worst + 1e-5


def bias_of(kind: str, batch: int, extra: int) -> Tensor:
    bias = torch.randn(batch if kind == "per batch" else 1, extra, generator=torch.Generator().manual_seed(3))
    if kind != "finite":
        bias[0, 1:4] = -torch.inf
    if kind == "all hidden":
        bias[:] = -torch.inf
    return bias


@pytest.mark.parametrize("kind", ["finite", "shared", "per batch", "all hidden"])
@pytest.mark.parametrize("name", ["none", "linear1"])
def test_key_bias_on_extra_tokens(attend_with: Attend, kind: str, name: TailName) -> None:
    layout = small_layout((3, 5, 7), 4, 9)
    q, k, v = smooth_qkv(layout, batch=2, dtype=torch.float32)
    bias = bias_of(kind, 2, layout.extra)
    request = make_request(q, k, v, layout, Policy(density=0.3, tail=name), bias)
    check(attend_with, request)
    if kind == "all hidden":
        # Hidden tokens leave no trace: neither their keys nor their values matter to anyone.
        loud_k, loud_v = k.clone(), v.clone()
        for x in (loud_k, loud_v):
            x[:, :, :4], x[:, :, -9:] = 30, -50
        loud = attend_with(replace(request, k=loud_k, v=loud_v))
        torch.testing.assert_close(loud, attend_with(request), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["transposed", "interleaved", "every other token"])
def test_strided_inputs(attend_with: Attend, form: str) -> None:
    layout = small_layout((3, 5, 7), 2, 3)
    q, k, v = smooth_qkv(layout, batch=2, heads=3, dtype=torch.float32)
    plain = make_request(q, k, v, layout, Policy(density=0.3))
    if form == "transposed":  # (B, L, H, D) in memory
        views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    elif form == "interleaved":  # (B, L, 3, H, D) in memory, as one QKV projection leaves it
        views = list(torch.stack([x.transpose(1, 2) for x in (q, k, v)], dim=2).permute(2, 0, 3, 1, 4).unbind(0))
    else:
        views = [torch.stack([x, x + 1], dim=3).flatten(2, 3)[:, :, ::2] for x in (q, k, v)]
    assert not any(x.is_contiguous() for x in views)
    request = make_request(views[0], views[1], views[2], layout, Policy(density=0.3))
    torch.testing.assert_close(check(attend_with, request), attend_with(plain), rtol=0, atol=1e-6)


def test_every_head_may_have_its_own_tail(attend_with: Attend) -> None:
    layout = small_layout((3, 5, 7), 0, 4)
    q, k, v = smooth_qkv(layout, batch=2, heads=len(TAILS))
    out = check(attend_with, make_request(q, k, v, layout, Policy(density=0.3, tail=TAILS)))
    for head, name in enumerate(TAILS[:3]):
        # Alone, such a head gives the same.
        one = [x[:, head : head + 1] for x in (q, k, v)]
        policy = Policy(density=0.3, tail=name, floor=0.5)
        request = make_request(one[0], one[1], one[2], layout, policy)
        mixed = make_request(q, k, v, layout, Policy(density=0.3, tail=TAILS)).keep[:, head : head + 1]
        alone = attend_with(replace(request, keep=mixed))
        torch.testing.assert_close(out[:, head : head + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mean", "linear0", "linear2"])
def test_rows_that_only_the_tail_serves(attend_with: Attend, name: TailName) -> None:
    layout = small_layout((3, 5, 7))
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    request = make_request(q, k, v, layout, Policy(density=0.3, tail=name))
    keep = request.keep.clone()
    keep[:, :, ::2] = False
    check(attend_with, replace(request, keep=keep))


def test_density_0_with_the_mean_tail_is_pooled_attention(attend_with: Attend) -> None:
    layout = small_layout((3, 5, 7))
    q, k, v = smooth_qkv(layout)
    request = make_request(q, k, v, layout, Policy(density=0.0, tail="mean", keep_own=False))
    assert not request.keep.any()
    tables = request.tables
    k_mean, v_mean = (block_means(x, tables.perm, tables.k) for x in (k, v))
    logits = torch.matmul(q, k_mean.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    pooled = torch.matmul((logits + tables.k.counts.double().log()).softmax(-1), v_mean)
    torch.testing.assert_close(attend_with(request), pooled, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["none", "mean", "linear2"])
def test_density_1_is_dense_attention(attend_with: Attend, name: TailName) -> None:
    layout = small_layout((3, 5, 7), 3, 6)
    q, k, v = smooth_qkv(layout, batch=2)
    bias = bias_of("per batch", 2, layout.extra)
    request = make_request(q, k, v, layout, Policy(density=1.0, tail=name), bias)
    mask = torch.zeros(2, 1, 1, layout.tokens, dtype=q.dtype)
    mask[..., :3], mask[..., -6:] = bias[:, None, None, :3], bias[:, None, None, 3:]
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend_with(request), dense, rtol=0, atol=1e-13)


def test_scale_is_a_factor_on_the_logits(attend_with: Attend) -> None:
    layout = small_layout()
    q, k, v = smooth_qkv(layout)
    request = make_request(q, k, v, layout, Policy(density=0.3))
    doubled = attend_with(replace(request, scale=2 * request.scale))
    torch.testing.assert_close(doubled, attend_with(replace(request, q=2 * q)), rtol=0, atol=1e-12)


def test_large_logits_do_not_overflow(attend_with: Attend) -> None:
    layout = small_layout((3, 5, 7), 0, 4)
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    for factor in (1e3, -1e3):
        check(attend_with, make_request(q * factor, k, v, layout, Policy(density=0.3, tail="mean")))


def test_the_definition_itself_row_by_row() -> None:
    """The reference against the formula of the tail, one query and one block at a time."""
    layout = small_layout((2, 3, 5), 2, 3)
    q, k, v = smooth_qkv(layout, heads=2, dim=8)
    request = make_request(q, k, v, layout, Policy(density=0.3, tail=("linear0", "linear1")))
    tables, tail = request.tables, request.tail
    assert tail is not None and tail.cov is not None and tail.u is not None and tail.w is not None
    out = attend_reference(request)
    for head in range(2):
        for i, q_tokens in enumerate(blocks_of(tables, "q")):
            for token in q_tokens:
                query = q[0, head, token] * request.scale
                below, above = torch.zeros((), dtype=q.dtype), torch.zeros(8, dtype=q.dtype)
                for j, k_tokens in enumerate(blocks_of(tables, "k")):
                    if request.keep[0, head, i, j]:
                        for other in k_tokens:
                            weight = torch.exp(query @ k[0, head, other])
                            below, above = below + weight, above + weight * v[0, head, other]
                        continue
                    mean_k, mean_v = (x[0, head, k_tokens].mean(0) for x in (k, v))
                    weight = len(k_tokens) * torch.exp(query @ mean_k)
                    c = tail.cov[0, head] + tail.u[0, head, j].T @ tail.w[0, head, j]
                    below, above = below + weight, above + weight * (mean_v + query @ c)
                torch.testing.assert_close(out[0, head, token], above / below, rtol=0, atol=1e-13)


def test_chunks_read_the_device_once_and_never_hold_more_than_their_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = small_layout((4, 7, 9), 0, 20)
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    request = make_request(q, k, v, layout, Policy(density=0.3))
    whole = attend_chunks(request)
    sizes = []
    inner = chunks._attend_group

    def counted(queries: Tensor, *others: object) -> Tensor:
        sizes.append(len(queries))
        return inner(queries, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(chunks, "_attend_group", counted)
    monkeypatch.setattr(chunks, "SCRATCH_BYTES", 60_000)
    torch.testing.assert_close(attend_chunks(request), whole, rtol=0, atol=1e-6)
    assert sum(sizes) == 2 * request.tables.q.total
    assert 2 * 2 < len(sizes) < sum(sizes)


class Largest(TorchDispatchMode):
    """Remembers the storage of the largest tensor any operation returned, in elements."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize("attend_with", ["rows", "chunks"], indirect=True)
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_no_tensor_of_a_call_is_anywhere_near_all_token_pairs(
    attend_with: Attend, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SCRATCH_BYTES", 2 << 20)
    layout = Layout(TokenGrid(8, 16, 32), 0, 40, 64, 64)
    q, k, v = smooth_qkv(layout, heads=1, dim=32, dtype=torch.float32)
    with Largest() as largest:
        request = make_request(q, k, v, layout, Policy(density=density))
        attend_with(request)
        probe_errors(request)
    # 64 query rows (a block, or the probe's) see every key, or a block's every pair: far from 4136 x 4136.
    assert largest.elements <= 80 * layout.tokens < layout.tokens**2 / 50


def test_groups_hold_rows_of_similar_length_within_the_limit() -> None:
    counts = [40, 40, 12, 11, 10, 8, 3, 0, 0]
    groups = plan_groups(counts, row_bytes=5, block_bytes=1, limit=40)
    assert [i for start, end, _ in groups for i in range(start, end)] == list(range(len(counts)))
    for start, end, longest in groups:
        assert longest == counts[start]
        assert end - start == 1 or (end - start) * (5 + longest) <= 40
        assert counts[end - 1] >= 0.75 * longest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["none", "linear2"])
def test_chunks_with_half_precision_products(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, name: TailName
) -> None:
    """The path of CUDA devices, where half-precision matrices are multiplied into float32."""
    monkeypatch.setattr(chunks, "_has_half_products", lambda q: True)
    monkeypatch.setattr(chunks, "_half_product", lambda a, b: torch.bmm(a.float(), b.float()))
    layout = small_layout((4, 7, 9), 0, 20)
    q, k, v = smooth_qkv(layout, dim=64, dtype=dtype)
    check(attend_chunks, make_request(q * 2, k, v, layout, Policy(density=0.3, tail=name)))


def test_the_torch_backend_works_through_rows_on_the_cpu() -> None:
    layout = small_layout()
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    request = make_request(q, k, v, layout, Policy())
    assert torch.equal(attend_torch(request), attend_rows(request))


def test_the_core_call_says_which_backend_ran() -> None:
    layout = small_layout()
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    assert attend(q, k, v, layout, Policy()).backend == "torch"
    assert attend(q, k, v, layout, Policy(), backend="reference").backend == "reference"
    torch.testing.assert_close(
        draft_attention(q, k, v, layout, Policy()), draft_attention(q, k, v, layout, Policy(), backend="reference")
    )


def problem(dtype: torch.dtype = torch.float32) -> CallKind:
    return CallKind(torch.device("cpu"), dtype, 64, 128, 64)


def test_backends_are_chosen_by_name_and_refuse_with_a_reason() -> None:
    assert {"auto", "torch", "reference", "flex"} <= set(backend_names())
    assert choose_backend("auto", problem()).name == "torch"
    with pytest.raises(ValueError, match="unknown backend 'fast'.*torch"):
        choose_backend("fast", problem())
    with pytest.raises(NoBackendError, match="int32"):
        choose_backend("auto", problem(torch.int32))
    with pytest.raises(NoBackendError, match="int32"):
        choose_backend("reference", problem(torch.int32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 2, 104, 16)}, "share one shape"),
        (
            {"q": torch.zeros(1, 2, 104, 16), "k": torch.zeros(1, 2, 104, 16), "v": torch.zeros(1, 2, 104, 16)},
            "104 tok",
        ),
        ({"v": torch.zeros(1, 2, 108, 16, dtype=torch.float64)}, "one dtype"),
        ({"key_bias": torch.zeros(1, 2)}, "cannot be expressed"),
        ({"key_bias": torch.zeros(3, 3)}, "batch 3"),
        ({"key_bias": torch.ones(1, 3, dtype=torch.bool)}, "turn a mask into 0 and -inf"),
        ({"q": torch.zeros(1, 2, 108, 16, requires_grad=True)}, "no gradients"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    layout = small_layout((3, 5, 7), 0, 3)
    arguments: dict[str, Tensor] = {name: torch.zeros(1, 2, 108, 16) for name in "qkv"} | change
    with pytest.raises(ValueError, match=message):
        draft_attention(layout=layout, policy=Policy(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.0, -0.125, float("inf"), float("nan")])
def test_a_scale_that_is_not_positive_and_finite_is_refused(scale: float) -> None:
    layout = small_layout((3, 5, 7))
    q, k, v = torch.zeros(3, 1, 2, layout.tokens, 16)
    with pytest.raises(ValueError, match=f"positive and finite, got {scale}"):
        draft_attention(q, k, v, layout, Policy(), scale=scale)


def test_without_a_cache_tables_are_built_for_the_call() -> None:
    layout = small_layout()
    q, k, v = smooth_qkv(layout)
    assert attend(q, k, v, layout, Policy()).request.tables.perm.equal(build_tables(layout).perm)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_autocast_around_the_call_changes_nothing(backend: str) -> None:
    layout = small_layout((3, 5, 7), 0, 4)
    q, k, v = smooth_qkv(layout, dtype=torch.float32)
    plain = attend(q, k, v, layout, Policy(density=0.3), backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = attend(q, k, v, layout, Policy(density=0.3), backend=backend)
        errors = probe_errors(cast.request).errors
    assert torch.equal(cast.out, plain.out)
    for name, error in probe_errors(plain.request).errors.items():
        assert torch.equal(errors[name], error)
