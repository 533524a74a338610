"""The backend `triton_hopper` as the core calls it, its one-time check included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from draftattn_core.attention import attend
from draftattn_core.backends import head_groups, triton_hopper
from draftattn_core.backends.reference import attend_reference
from draftattn_core.backends.registry import Problem, choose_backend
from draftattn_core.grid import TokenGrid
from draftattn_core.layout import Layout
from draftattn_core.policy import Policy, TailName
from kernels import attend_hopper

LAYOUT = Layout(TokenGrid(3, 5, 12), 3, 18, 128, 64)
SMALL = Problem(torch.device("cpu"), torch.float32, 64, 128, 64)


@pytest.mark.parametrize(("tail", "halves"), [("none", False), ("linear1", True)])
def test_a_whole_call_is_the_references(monkeypatch: pytest.MonkeyPatch, tail: TailName, halves: bool) -> None:
    monkeypatch.setattr(head_groups, "LEAST_PROGRAMS", 1 if halves else 1 << 30)
    q, k, v = torch.randn(3, 1, 2, LAYOUT.tokens, 64, generator=torch.Generator().manual_seed(0))
    bias = torch.linspace(-2, 0, LAYOUT.extra)[None]
    policy = Policy(density=0.4, tail=tail)
    found = attend(q, k, v, LAYOUT, policy, backend="triton_hopper", key_bias=bias)
    assert found.backend == "triton_hopper"
    assert not found.request.keep.all()
    truth = attend_reference(found.request)
    assert (found.out - truth).norm() < 1e-6 * truth.norm()
    assert found.out.transpose(1, 2).is_contiguous()
    # A request made elsewhere: lists and copies are made for it.
    assert torch.equal(triton_hopper.attend_hopper(found.request), found.out)


def test_where_triton_interprets_it_serves_those_who_ask_for_it() -> None:
    assert choose_backend("triton_hopper", SMALL).name == "triton_hopper"
    assert choose_backend("auto", SMALL).name == "torch"


def test_the_one_time_check_passes() -> None:
    assert triton_hopper.check(SMALL) is None


def test_the_one_time_check_sees_a_wrong_kernel_and_lost_specialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attend_hopper.attend_hopper

    def wrong(*arguments, **options):  # type: ignore[no-untyped-def]
        launched = right(*arguments, **options)
        return replace(launched, out=launched.out * 1.05)

    def plain(*arguments, **options):  # type: ignore[no-untyped-def]
        return replace(right(*arguments, **options), warps=(12, 4))

    monkeypatch.setattr(attend_hopper, "attend_hopper", wrong)
    assert "off by" in str(triton_hopper.check(SMALL))
    monkeypatch.setattr(attend_hopper, "attend_hopper", plain)
    assert "without specialising its warps" in str(triton_hopper.check(SMALL))
