"""The CPU backend shares heads out among threads: same result, the caller's settings untouched, errors come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from draftattn_core import Layout, Policy, TokenGrid, attend, draft_attention
from draftattn_core.backends import rows

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
