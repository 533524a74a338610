"""The CPU backend: heads shared out among threads, the tail of many rows at once, 16 bits by fused attention."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from draftattention.draftattn_core import Layout, Policy, TokenGrid, attend, draft_attention
from draftattention.draftattn_core.backends.cpu import fused, rows, skipped, threads
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.method.policy import TAILS, TailName

LAYOUT = Layout(TokenGrid(3, 9, 10), extra_after=5, q_block=32, k_block=16)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = torch.randn(3, 2, 3, LAYOUT.tokens, 32).unbind(0)
    return q, k, v


def test_threads_change_nothing(two_threads: None) -> None:
    q, k, v = qkv()
    alone = torch.get_num_threads()
    together = draft_attention(q, k, v, LAYOUT, Policy(), backend="torch")
    assert torch.get_num_threads() == alone == 2
    torch.set_num_threads(1)
    torch.testing.assert_close(draft_attention(q, k, v, LAYOUT, Policy(), backend="torch"), together)


def test_threads_work_under_inference_mode(two_threads: None) -> None:
    with torch.inference_mode():
        q, k, v = qkv()
        exact = draft_attention(q, k, v, LAYOUT, Policy(), backend="reference")
        torch.testing.assert_close(draft_attention(q, k, v, LAYOUT, Policy(), backend="torch"), exact)


def test_a_failure_in_a_thread_reaches_the_caller(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("this row failed")

    q, k, v = qkv()
    request = attend(q, k, v, LAYOUT, Policy(), backend="torch").request
    monkeypatch.setattr(rows, "_attend_row", fail)
    with pytest.raises(RuntimeError, match="this row failed"):
        rows.attend_rows(request)
    assert torch.get_num_threads() == 2


def test_other_threads_keep_their_number(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it computes, its own threads use one, and threads that begin meanwhile what everyone uses."""
    inner, seen, elsewhere = rows._attend_row, [], []

    def watched(*given: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        if not elsewhere:
            other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
            other.start()
            other.join()
        return inner(*given)

    monkeypatch.setattr(rows, "_attend_row", watched)
    q, k, v = qkv()
    draft_attention(q, k, v, LAYOUT, Policy(), backend="torch")
    assert set(seen) == {1}
    assert set(elsewhere) == {2}


def test_calls_at_once_from_new_threads_all_share_out_their_heads(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, shares = threads._compute_alone, []

    def watched(work: Any, workers: int) -> None:
        shares.append(workers)
        inner(work, workers)

    monkeypatch.setattr(threads, "_compute_alone", watched)
    q, k, v = qkv()
    # The request alone is made here: a thread that uses torch before may take over the number of that moment.
    request = attend(q, k, v, LAYOUT, Policy(), backend="torch").request
    shares.clear()
    expected = rows.attend_rows(request)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(rows.attend_rows, request) for _ in range(16)]
    assert all(torch.equal(call.result(), expected) for call in calls)
    assert shares == [2] * 17
    assert torch.get_num_threads() == 2


def test_a_thread_that_cannot_start_leaves_no_other_waiting(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(ThreadPoolExecutor):
        def submit(self, *given: Any, **named: Any) -> Any:
            if self._threads:
                raise RuntimeError("can't start new thread")
            return super().submit(*given, **named)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Exhausted)
    q, k, v = qkv()
    with pytest.raises(RuntimeError, match="can't start"):
        draft_attention(q, k, v, LAYOUT, Policy(), backend="torch")
    assert torch.get_num_threads() == 2
    assert not threads._STARTING.locked()


def test_a_head_is_charged_for_the_terms_of_its_own_tail_only(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, len(TAILS), LAYOUT.tokens, 32).unbind(0)
    inner, terms = rows.skipped, []

    def watched(*given: Any, **named: Any) -> Any:
        terms.append((given[-1].cov is not None, given[-1].ranks))
        return inner(*given, **named)

    monkeypatch.setattr(rows, "skipped", watched)
    alone = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = attend(q, k, v, LAYOUT, Policy(tail=TAILS), backend="torch")
    finally:
        torch.set_num_threads(alone)
    # Not at all for the head that drops its blocks.
    assert terms == [(False, 0), (True, 0), (True, 2), (True, 2)]
    torch.testing.assert_close(result.out, attend_reference(result.request), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("budget", [1, 1 << 12, 1 << 19])
def test_the_tail_of_several_query_blocks_at_once_is_that_of_each(
    monkeypatch: pytest.MonkeyPatch, budget: int, dtype: torch.dtype
) -> None:
    """Short last blocks, rows that skip nothing, and logits so large that a row's kept blocks outweigh all others."""
    for name in ("_BYTES", "_BYTES_16"):
        monkeypatch.setattr(skipped, name, budget)
    q, k, v = (x.to(dtype) for x in qkv())
    for factor in (1.0, 60.0):
        result = attend(q * factor, k, v, LAYOUT, Policy(0.3, tail_gain=1.0), backend="torch")
        request = result.request
        request.keep[:, :, 1] = True
        exact = exact_in_float64(request)
        found = rows.attend_rows(request)
        assert found.isfinite().all()
        limit = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
        assert float((found - exact).norm() / exact.norm()) < limit


def exact_in_float64(request: AttendRequest) -> torch.Tensor:
    return attend_reference(replace(request, q=request.q.double(), k=request.k.double(), v=request.v.double()))


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@HALVES
def test_products_of_16_bits_are_those_of_dense_attention(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Where everything is kept, each row's attention is bit by bit what torch computes for these 32 queries."""
    q, k, v = (x.to(dtype) for x in qkv())
    request = attend(q, k, v, LAYOUT, Policy(1.0), backend="torch").request
    called = []
    inner = fused._ATTENTION
    assert inner is not None

    def watched(*given: Any, **named: Any) -> Any:
        called.append(given[0].dtype)
        return inner(*given, **named)

    monkeypatch.setattr(fused, "_ATTENTION", watched)
    found = rows.attend_rows(replace(request, tail=None))
    assert called == [dtype] * (2 * 3 * request.tables.q.total)
    of_extra = slice(-LAYOUT.extra, None)
    # Block order puts the extra tokens in front of the others.
    order = torch.cat([torch.arange(LAYOUT.tokens)[of_extra], request.tables.perm[: -LAYOUT.extra]])
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, of_extra], k[:, :, order], v[:, :, order], scale=request.scale
    )
    assert torch.equal(found[:, :, of_extra], theirs)


@HALVES
def test_a_torch_without_fused_attention_computes_16_bits_in_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(fused, "_ATTENTION", None)
    q, k, v = (x.to(dtype) for x in qkv())
    request = attend(q, k, v, LAYOUT, Policy(0.3), backend="torch").request
    exact = exact_in_float64(request)
    # What is left is the rounding of the result.
    assert float((rows.attend_rows(request) - exact).norm() / exact.norm()) < torch.finfo(dtype).eps / 3


class _Without:
    """An operator as other versions of torch have it: these arguments, so many tensors returned."""

    def __init__(self, arguments: tuple[str, ...], returns: int) -> None:
        schema = SimpleNamespace(arguments=[SimpleNamespace(name=name) for name in arguments], returns=[None] * returns)
        self.default = SimpleNamespace(_schema=schema)


@pytest.mark.parametrize(
    ("operator", "serves"),
    [
        (_Without(("query", "key", "value", "attn_mask", "scale"), 2), True),
        (_Without(("query", "key", "value", "scale"), 2), False),
        (_Without(("query", "key", "value", "attn_mask"), 2), False),
        (_Without(("query", "key", "value", "attn_mask", "scale"), 9), False),
        (None, False),
    ],
)
def test_fused_attention_of_another_signature_is_not_called(
    monkeypatch: pytest.MonkeyPatch, operator: object, serves: bool
) -> None:
    operators = SimpleNamespace(aten=SimpleNamespace(_scaled_dot_product_flash_attention_for_cpu=operator))
    monkeypatch.setattr(torch, "ops", operators)
    assert fused._fused_attention() is (operator if serves else None)


@HALVES
@pytest.mark.parametrize(
    ("extra", "hidden"), [(0, 0), (5, 0), (5, 3), (5, 5)], ids=["no text", "text", "some of it hidden", "all hidden"]
)
def test_a_row_may_keep_no_video_block_at_all(dtype: torch.dtype, extra: int, hidden: int) -> None:
    """Where all text is hidden, too, the tail is the whole of it."""
    layout = replace(LAYOUT, extra_after=extra)
    q, k, v = (x.to(dtype) for x in torch.randn(3, 1, 2, layout.tokens, 32).unbind(0))
    bias = torch.zeros(1, extra)
    bias[:, :hidden] = -torch.inf
    for key_bias in (None, bias) if extra else (None,):
        request = attend(q, k, v, layout, Policy(0.3), key_bias=key_bias, backend="torch").request
        request.keep[:, :, 2, : request.tables.k.video] = False
        of_row = request.tables.perm[slice(*request.tables.q.bounds[2:4])]
        exact = exact_in_float64(request)[:, :, of_row]
        found = rows.attend_rows(request)[:, :, of_row]
        assert float((found - exact).norm() / exact.norm()) < {torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("size_of_keys", [1.0, 1e4])
def test_values_near_the_end_of_float16_stay_finite(size_of_keys: float, tail: TailName) -> None:
    """Sums of a tail's weights times values, and products of keys and values, lie far beyond that end."""
    q, k, v = qkv()
    k, v = (x.clamp(-6e4, 6e4).half() for x in (k * size_of_keys, v * 1e4))
    q = (q * 0.01 / size_of_keys).half()
    request = attend(q, k, v, LAYOUT, Policy(0.1, tail=tail, tail_gain=1.0), backend="torch").request
    exact = exact_in_float64(request)
    found = rows.attend_rows(request)
    assert found.isfinite().all()
    assert float((found - exact).norm() / exact.norm()) < 5e-4


@HALVES
@pytest.mark.parametrize("hidden", [0, 599, 600])
def test_hidden_extra_tokens_count_for_nothing(dtype: torch.dtype, hidden: int) -> None:
    """More of them than fused attention looks at in one go, in front of everything else."""
    layout = replace(LAYOUT, extra_after=600)
    q, k, v = (x.to(dtype) for x in torch.randn(3, 2, 2, layout.tokens, 32).unbind(0))
    bias = torch.randn(2, 600)
    bias[:, :hidden] = -torch.inf
    for tail in ("none", "linear1"):
        request = attend(q, k, v, layout, Policy(0.3, tail=tail), key_bias=bias, backend="torch").request
        exact = exact_in_float64(request)
        found = rows.attend_rows(request)
        assert float((found - exact).norm() / exact.norm()) < {torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]


def test_a_compiled_caller_may_change_its_dtype() -> None:
    """Hosts keep their calls out of compiled graphs; who calls the core from one gets no more than graph breaks."""
    q, k, v = qkv()
    compiled = torch.compile(draft_attention, backend="eager")
    for dtype in (torch.bfloat16, torch.float32):
        given = [x.to(dtype) for x in (q, k, v)]
        expected = draft_attention(*given, LAYOUT, Policy(0.3), backend="torch")
        assert torch.equal(compiled(*given, LAYOUT, Policy(0.3), backend="torch"), expected)
