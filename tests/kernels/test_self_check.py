"""What the self-check of kernels sees, shown on calls of the core with one thing spoilt: no kernel runs here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.backends.call_kind import CallKind, Variant, variants_of
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.backends.triton.self_check import check_gathered, judge, small_policy, small_request
from draftattention.draftattn_core.method.draft import Draft, draft_logits, make_draft
from draftattention.draftattn_core.method.policy import TAILS, Method, Policy, TailName
from draftattention.draftattn_core.method.selection import select_blocks
from draftattention.kernels.types import Tail
from tests.core.cases import RANKED

SMALL = CallKind(torch.device("cpu"), torch.float32, 64, 128, 64)


@dataclass(frozen=True)
class Computed:
    """A call as kernels leave it."""

    out: Tensor
    request: AttendRequest
    draft: Draft

    def judged(self, policy: Policy) -> str | None:
        return judge(self.out, self.request, self.draft, policy)


def computed(variant: Variant) -> Computed:
    request, policy = small_request(SMALL, variant), small_policy(variant)
    draft = make_draft(request.q, request.k, request.tables, spread=policy.of(2).spreads)
    return Computed(attend_reference(request), request, draft)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("method", RANKED)
@pytest.mark.parametrize("biased", [False, True])
def test_every_variant_has_something_to_check_and_passes_if_right(method: Method, tail: TailName, biased: bool) -> None:
    variant = Variant(method, tail, biased)
    call = computed(variant)
    video = call.request.keep[:, :, :3, :6]
    assert not video.all(-1).any() and (call.request.key_bias is not None) == biased
    assert call.judged(small_policy(variant)) is None


def with_tail(change: Callable[[Tail], Tail | None]) -> Callable[[Computed], Computed]:
    """The output agrees with the tail, but the tail is not that of K and V."""

    def spoil(call: Computed) -> Computed:
        assert call.request.tail is not None
        request = replace(call.request, tail=change(call.request.tail))
        return replace(call, request=request, out=attend_reference(request))

    return spoil


def one_pair_less(call: Computed) -> Computed:
    keep = call.request.keep.clone()
    keep[0, 0, 0, int(keep[0, 0, 0].int().argmax())] = False
    request = replace(call.request, keep=keep)
    return replace(call, request=request, out=attend_reference(request))


def with_draft(change: Callable[[Draft], Draft]) -> Callable[[Computed], Computed]:
    return lambda call: replace(call, draft=change(call.draft))


SPOILT = {
    "output": (lambda call: replace(call, out=call.out * 1.05), "none", "its output is off by 5.0e-02"),
    "selection": (one_pair_less, "none", "its selection differs from the reference's in 1 block pairs"),
    "query means": (with_draft(lambda x: replace(x, q_mean=x.q_mean * 1.05)), "none", "off by 5.0e-02"),
    "key means": (with_draft(lambda x: replace(x, k_mean=x.k_mean * 1.05)), "none", "off by 5.0e-02"),
    # The same for all blocks, and so without a say in the selection.
    "spread": (with_draft(lambda x: replace(x, k_spread=2 * x.k_spread)), "mean", "off by 1.0e+00"),
    "no spread": (with_draft(lambda x: replace(x, k_spread=None)), "mean", "off by inf"),
    "value means": (with_tail(lambda x: replace(x, v_mean=x.v_mean * 1.05)), "mean", "off by 5.0e-02"),
    "average": (with_tail(lambda x: replace(x, cov=-x.cov)), "linear0", "off by 2.0e+00"),
    "no average": (with_tail(lambda x: replace(x, cov=None)), "linear0", "off by inf"),
    "not a number": (with_tail(lambda x: replace(x, cov=x.cov * torch.nan)), "linear0", "off by nan"),
    "second rank": (with_tail(lambda x: replace(x, w=torch.stack([x.w[..., 0, :]] * 2, 3))), "linear2", "off by"),
    "one rank of two": (with_tail(lambda x: replace(x, u=x.u[..., :1, :], w=x.w[..., :1, :])), "linear2", "off by inf"),
    "no tail": (with_tail(lambda x: None), "mean", "off by inf"),
}


@pytest.mark.parametrize(("spoil", "tail", "reason"), SPOILT.values(), ids=SPOILT)
def test_it_sees_what_is_wrong(spoil: Callable[[Computed], Computed], tail: TailName, reason: str) -> None:
    # By rows, where scaled means leave the ranking as it is.
    variant = Variant("row", tail)
    found = spoil(computed(variant)).judged(small_policy(variant))
    assert found is not None and reason in found


def test_a_tail_where_none_was_asked_for_is_seen() -> None:
    assert "off by" in str(computed(Variant("row", "mean")).judged(small_policy(Variant("row", "none"))))


def test_a_policy_has_a_variant_for_each_of_its_tails() -> None:
    policy = Policy(method="row", tail=("linear1", "none", "linear1"))
    assert variants_of(policy, True) == (Variant("row", "none", True), Variant("row", "linear1", True))
    kind = replace(SMALL, variants=variants_of(policy, True))
    assert kind.with_tail("linear2").variants == (Variant("row", "linear2", True),)
    q = torch.zeros(1, 2, 5, 64)
    assert CallKind.of(q, 128, 64, policy, biased=True) == kind


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", RANKED)
def test_rounding_cannot_change_the_selection_of_a_small_call(method: Method, dtype: torch.dtype) -> None:
    """A GPU's exp and another order of summation move scores by 1e-6; no small call has two that near a threshold."""
    for dim, q_block, k_block in itertools.product((64, 128), repeat=3):
        kind = CallKind(torch.device("cpu"), dtype, dim, q_block, k_block)
        variant = Variant(method, "mean")
        request, policy = small_request(kind, variant), small_policy(variant)
        draft = make_draft(request.q, request.k, request.tables, spread=policy.of(2).spreads)
        scores = draft_logits(draft, request.tables, request.scale)
        noise = torch.randn(8, *scores.shape, generator=torch.Generator().manual_seed(1)) * 1e-5
        for moved in scores + noise:
            assert torch.equal(select_blocks(moved, request.tables, policy), request.keep)


def test_the_verdict_does_not_depend_on_the_first_callers_autocast() -> None:
    seen = []

    def attends(request: AttendRequest) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return attend_reference(request)

    with torch.autocast("cpu", torch.bfloat16):
        assert check_gathered(attends, SMALL, Variant("head", "linear1")) is None
    assert seen == [False]
