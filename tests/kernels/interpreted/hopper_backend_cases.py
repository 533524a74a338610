"""The backend `triton_hopper` as the core calls it, its one-time check included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends.call_kind import CallKind, Variant
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.registry import choose_backend
from draftattention.draftattn_core.backends.triton import head_groups
from draftattention.draftattn_core.backends.triton.hopper import HOPPER
from draftattention.draftattn_core.backends.triton.launch import Warps
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.policy import Policy, TailName
from draftattention.kernels import attend_hopper
from draftattention.kernels.configs import HopperConfig
from draftattention.kernels.types import AttendInputs

LAYOUT = Layout(TokenGrid(3, 5, 12), 3, 18, 128, 64)
SMALL = CallKind(torch.device("cpu"), torch.float32, 64, 128, 64)


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
    assert torch.equal(HOPPER.attend(found.request), found.out)


def test_where_triton_interprets_it_serves_those_who_ask_for_it() -> None:
    assert choose_backend("triton_hopper", SMALL).name == "triton_hopper"
    assert choose_backend("auto", SMALL).name == "torch"


def test_selections_and_tables_with_strides_are_read_right() -> None:
    """By the op, which takes what its caller has."""
    layout = Layout(TokenGrid(2, 8, 12), 0, 5, 128, 64)
    q, k, v = torch.randn(3, 1, 2, layout.tokens, 64)
    request = attend(q, k, v, layout, Policy(density=0.4, tail="mean"), backend="reference").request
    perm = request.tables.perm.repeat_interleave(2)[::2]
    keep = request.keep.transpose(1, 2).contiguous().transpose(1, 2)
    strided = replace(request, keep=keep, tables=replace(request.tables, perm=perm))
    assert not any(x.is_contiguous() for x in (perm, keep))
    truth = attend_reference(request)
    assert (HOPPER.attend(strided) - truth).norm() < 1e-6 * truth.norm()


@pytest.mark.parametrize("variant", [Variant("row", "none"), Variant("row", "linear2", True)], ids=str)
def test_the_one_time_check_passes(variant: Variant) -> None:
    assert HOPPER.check(SMALL, variant) is None


def test_the_one_time_check_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attend_hopper.attend_hopper

    def wrong(inputs: AttendInputs, config: HopperConfig, out: Tensor) -> Warps:
        warps = right(inputs, config, out)
        out.mul_(1.05)
        return warps

    monkeypatch.setattr(attend_hopper, "attend_hopper", wrong)
    assert "off by 5.0e-02" in str(HOPPER.check(SMALL, Variant("row", "none")))


@pytest.mark.parametrize(
    ("tail", "warps"), [("none", (4,)), ("mean", (4, 12, 12)), ("mean", (12, 4, 12)), ("mean", (12, 12, 4))]
)
def test_the_one_time_check_sees_lost_specialisation_in_any_kernel(
    monkeypatch: pytest.MonkeyPatch, tail: TailName, warps: tuple[int, ...]
) -> None:
    right = attend_hopper.attend_hopper

    def plain(*arguments: Any) -> Warps:
        right(*arguments)
        return warps

    monkeypatch.setattr(attend_hopper, "attend_hopper", plain)
    variant = Variant("row", tail)
    found = HOPPER.check(SMALL, variant)
    assert found == f"Triton compiled it for cpu without specialising its warps ({variant})"
