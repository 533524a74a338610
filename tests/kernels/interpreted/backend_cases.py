"""The backend as the core calls it: prepare, select and attend together, and the custom op around them."""

from __future__ import annotations

import pytest
import torch

from draftattn_core.attention import attend
from draftattn_core.backends import head_groups, triton_backend
from draftattn_core.backends.reference import attend_reference
from draftattn_core.backends.registry import Problem
from draftattn_core.grid import TokenGrid
from draftattn_core.layout import Layout
from draftattn_core.policy import Policy
from kernels import attend_pointer

LAYOUT = Layout(TokenGrid(3, 5, 7), 3, 18, 32, 16)
SMALL = Problem(torch.device("cpu"), torch.float32, 64, 128, 64)


@pytest.mark.parametrize("tail", ["none", "linear1"])
def test_a_whole_call_is_the_references(tail: str) -> None:
    q, k, v = torch.randn(3, 1, 2, LAYOUT.tokens, 64)
    bias = torch.linspace(-2, 0, LAYOUT.extra)[None]
    policy = Policy(density=0.4, tail=tail)
    found = attend(q, k, v, LAYOUT, policy, backend="triton", key_bias=bias)
    expected = attend(q, k, v, LAYOUT, policy, backend="reference", key_bias=bias)
    assert found.backend == "triton"
    assert torch.equal(found.request.keep, expected.request.keep)
    assert found.density() == expected.density()
    # Ranks are found by another iteration than the core's, so with them the truth is that of the call's own tail.
    truth = expected.out if tail == "none" else attend_reference(found.request)
    assert (found.out - truth).norm() < 1e-6 * truth.norm()
    assert found.out.transpose(1, 2).is_contiguous()


def test_heads_in_two_halves_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything that may differ from head to head, so that each half has to take its own share of it."""
    monkeypatch.setattr(head_groups, "LEAST_PROGRAMS", 1)
    layout = Layout(TokenGrid(2, 4, 6), 0, 5, 32, 16)
    q, k, v = torch.randn(3, 2, 3, layout.tokens, 64)
    policy = Policy(density=(0.2, 0.4, 0.6), tail=("none", "linear1", "mean"), tail_gain=(0.0, 0.5, 1.0))
    found = attend(q, k, v, layout, policy, backend="triton")
    expected = attend(q, k, v, layout, policy, backend="reference")
    assert torch.equal(found.request.keep, expected.request.keep)
    truth = attend_reference(found.request)
    assert (found.out - truth).norm() < 1e-6 * truth.norm()
    for head in (0, 2):
        assert (found.out - expected.out)[:, head].norm() < 1e-6 * truth.norm()


def test_the_one_time_check_passes() -> None:
    assert triton_backend.check(SMALL) is None


def test_the_one_time_check_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attend_pointer.attend_pointer

    def wrong(*arguments, **options):  # type: ignore[no-untyped-def]
        return right(*arguments, **options).mul_(1.05)

    monkeypatch.setattr(attend_pointer, "attend_pointer", wrong)
    assert "off by" in str(triton_backend.check(SMALL))
