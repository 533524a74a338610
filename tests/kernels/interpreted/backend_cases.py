"""The backend as the core calls it: prepare, select and attend together, and the custom op around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends.call_kind import CallKind, Variant
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.triton import head_groups
from draftattention.draftattn_core.backends.triton.op import call_op
from draftattention.draftattn_core.backends.triton.pointer import POINTER
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.policy import Policy
from draftattention.kernels import attend_pointer, prepare
from draftattention.kernels.configs import AttendConfig
from draftattention.kernels.types import AttendInputs
from tests.kernels.problems import scatter

LAYOUT = Layout(TokenGrid(3, 5, 7), 3, 18, 32, 16)
SMALL = CallKind(torch.device("cpu"), torch.float32, 64, 128, 64)


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
    """With everything that may differ from head to head, so that each half has to take its own share of it, and q, k
    and v each with strides of its own."""
    monkeypatch.setattr(head_groups, "LEAST_PROGRAMS", 1)
    layout = Layout(TokenGrid(2, 4, 6), 0, 5, 32, 16)
    q, k, v = scatter(*torch.randn(3, 2, 3, layout.tokens, 64))
    policy = Policy(density=(0.2, 0.4, 0.6), tail=("none", "linear1", "mean"), tail_gain=(0.0, 0.5, 1.0))
    found = attend(q, k, v, layout, policy, backend="triton")
    expected = attend(q, k, v, layout, policy, backend="reference")
    assert torch.equal(found.request.keep, expected.request.keep)
    truth = attend_reference(found.request)
    assert (found.out - truth).norm() < 1e-6 * truth.norm()
    for head in (0, 2):
        assert (found.out - expected.out)[:, head].norm() < 1e-6 * truth.norm()


def test_selections_and_tables_with_strides_are_read_right() -> None:
    """By the op, which takes what its caller has."""
    layout = Layout(TokenGrid(2, 4, 6), 0, 5, 32, 16)
    q, k, v = torch.randn(3, 1, 2, layout.tokens, 64)
    request = attend(q, k, v, layout, Policy(density=0.4, tail="mean"), backend="reference").request
    perm = request.tables.perm.repeat_interleave(2)[::2]
    keep = request.keep.transpose(1, 2).contiguous().transpose(1, 2)
    strided = replace(request, keep=keep, tables=replace(request.tables, perm=perm))
    assert not any(x.is_contiguous() for x in (perm, keep))
    truth = attend_reference(request)
    assert (call_op(strided) - truth).norm() < 1e-6 * truth.norm()


VARIANTS = [
    Variant("head", "linear1", True),
    Variant("row", "linear2"),
    Variant("top_p", "mean"),
    Variant("draft", "none", True),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_one_time_check_passes(variant: Variant) -> None:
    assert POINTER.check(SMALL, variant) is None


def test_the_one_time_check_of_kernels_that_gather_passes() -> None:
    assert POINTER.check_gathered(SMALL, Variant("row", "linear1", True)) is None


def scaled_output(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attend_pointer.attend_pointer

    def wrong(inputs: AttendInputs, config: AttendConfig, out: Tensor) -> None:
        right(inputs, config, out)
        out.mul_(1.05)

    monkeypatch.setattr(attend_pointer, "attend_pointer", wrong)


def shifted_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of queries: the selection agrees with the draft, but the draft is another call's."""
    right = prepare.prepare_queries
    monkeypatch.setattr(prepare, "prepare_queries", lambda *arguments: right(*arguments).roll(1, 2))


WRONG = {
    "output": (scaled_output, Variant("row", "none"), "output is off by 5.0e-02"),
    "draft": (shifted_means, Variant("row", "none"), "off by"),
}


@pytest.mark.parametrize(("patch", "variant", "reason"), WRONG.values(), ids=WRONG)
def test_the_one_time_check_sees_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, patch: Callable[[pytest.MonkeyPatch], None], variant: Variant, reason: str
) -> None:
    patch(monkeypatch)
    found = str(POINTER.check(SMALL, variant))
    assert reason in found and found.endswith(f"on cpu ({variant})")


def test_the_one_time_check_of_kernels_that_gather_sees_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled_output(monkeypatch)
    assert "off by 5.0e-02" in str(POINTER.check_gathered(SMALL, Variant("row", "none")))
