"""The backend `triton_hopper` as the core calls it, its one-time check included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends.call_kind import Problem, Variant
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.registry import choose_backend
from draftattention.draftattn_core.backends.triton import head_groups
from draftattention.draftattn_core.backends.triton import hopper as triton_hopper
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.policy import Policy, TailName
from draftattention.kernels import attend_hopper
from draftattention.kernels.attend_hopper import Launched
from tests.kernels.problems import lists_of

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


def test_selections_and_tables_with_strides_are_read_right() -> None:
    """By the op, which takes what its caller has."""
    layout = Layout(TokenGrid(2, 8, 12), 0, 5, 128, 64)
    q, k, v = torch.randn(3, 1, 2, layout.tokens, 64)
    request = attend(q, k, v, layout, Policy(density=0.4, tail="mean"), backend="reference").request
    perm = request.tables.perm.repeat_interleave(2)[::2]
    keep, *lists = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (request.keep, *lists_of(request.keep)))
    strided = replace(request, keep=keep, tables=replace(request.tables, perm=perm))
    assert not any(x.is_contiguous() for x in (perm, keep, *lists))
    truth = attend_reference(request)
    assert (triton_hopper.attend_listed(strided, tuple(lists)) - truth).norm() < 1e-6 * truth.norm()


@pytest.mark.parametrize("variant", [Variant("row", "none"), Variant("row", "linear2", True)], ids=str)
def test_the_one_time_check_passes(variant: Variant) -> None:
    assert triton_hopper.check(SMALL, variant) is None


def test_the_one_time_check_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attend_hopper.attend_hopper

    def wrong(*arguments: Any, **options: Any) -> Launched:
        launched = right(*arguments, **options)
        launched.out.mul_(1.05)
        return launched

    monkeypatch.setattr(attend_hopper, "attend_hopper", wrong)
    assert "off by 5.0e-02" in str(triton_hopper.check(SMALL, Variant("row", "none")))


@pytest.mark.parametrize(("tail", "warps"), [("none", (4,)), ("mean", (4, 12)), ("mean", (12, 4))])
def test_the_one_time_check_sees_lost_specialisation_in_either_kernel(
    monkeypatch: pytest.MonkeyPatch, tail: TailName, warps: tuple[int, ...]
) -> None:
    right = attend_hopper.attend_hopper

    def plain(*arguments: Any, **options: Any) -> Launched:
        return replace(right(*arguments, **options), warps=warps)

    monkeypatch.setattr(attend_hopper, "attend_hopper", plain)
    variant = Variant("row", tail)
    found = triton_hopper.check(SMALL, variant)
    assert found == f"Triton compiled it for cpu without specialising its warps ({variant})"
