"""The CPU backend shares heads out among threads: same result, the caller's settings untouched, errors come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from draftattention.draftattn_core import Layout, Policy, TokenGrid, attend, draft_attention
from draftattention.draftattn_core.backends import torch_rows as rows
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.method.policy import TAILS

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
    inner, shares = rows._compute_alone, []

    def watched(work: Any, workers: int) -> None:
        shares.append(workers)
        inner(work, workers)

    monkeypatch.setattr(rows, "_compute_alone", watched)
    q, k, v = qkv()
    expected = draft_attention(q, k, v, LAYOUT, Policy(), backend="torch")
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(draft_attention, q, k, v, LAYOUT, Policy(), backend="torch") for _ in range(16)]
    assert all(torch.equal(call.result(), expected) for call in calls)
    assert shares == [2] * 17
    assert torch.get_num_threads() == 2


def test_a_thread_that_cannot_start_leaves_no_other_waiting(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(ThreadPoolExecutor):
        def submit(self, *given: Any, **named: Any) -> Any:
            if self._threads:
                raise RuntimeError("can't start new thread")
            return super().submit(*given, **named)

    monkeypatch.setattr(rows, "ThreadPoolExecutor", Exhausted)
    q, k, v = qkv()
    with pytest.raises(RuntimeError, match="can't start"):
        draft_attention(q, k, v, LAYOUT, Policy(), backend="torch")
    assert torch.get_num_threads() == 2
    assert not rows._STARTING.locked()


def test_a_head_is_charged_for_the_terms_of_its_own_tail_only(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, len(TAILS), LAYOUT.tokens, 32).unbind(0)
    inner, terms = rows._skipped, []

    def watched(*given: Any) -> Any:
        terms.append((given[-1].cov is not None, given[-1].ranks))
        return inner(*given)

    monkeypatch.setattr(rows, "_skipped", watched)
    alone = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = attend(q, k, v, LAYOUT, Policy(tail=TAILS), backend="torch")
    finally:
        torch.set_num_threads(alone)
    # Not at all for the head that drops its blocks.
    assert terms == [(False, 0), (True, 0), (True, 2), (True, 2)]
    torch.testing.assert_close(result.out, attend_reference(result.request), rtol=0, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 1 << 12, 1 << 19])
def test_the_tail_of_several_query_blocks_at_once_is_that_of_each(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """Short last blocks, rows that skip nothing, and logits so large that a row's kept blocks outweigh all others."""
    monkeypatch.setattr(rows, "_TAIL_BYTES", budget)
    q, k, v = qkv()
    for factor in (1.0, 60.0):
        result = attend(q * factor, k, v, LAYOUT, Policy(0.3, tail_gain=1.0), backend="torch")
        request = result.request
        request.keep[:, :, 1] = True
        exact = attend_reference(replace(request, q=request.q.double(), k=request.k.double(), v=request.v.double()))
        found = rows.attend_rows(request)
        assert found.isfinite().all()
        assert float((found - exact).norm() / exact.norm()) < 1e-5
