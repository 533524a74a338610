"""Selection rules: a rule is a file and a line, its errors are its own, and it may reorder or answer calls itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.attention import Attention, attend
from draftattention.draftattn_core.backends.call_kind import GIVEN, variants_of
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.method import rules
from draftattention.draftattn_core.method.policy import METHODS, Policy
from draftattention.draftattn_core.method.rules.call import HeadOrder, RuleCall, whole_map
from draftattention.draftattn_core.method.rules.rule import Attended, Default, Rule
from draftattention.draftattn_core.method.selection import select_blocks
from tests.core.cases import relative, small_layout, smooth_qkv

LAYOUT = small_layout((3, 5, 7), 3, 9)
Q, K, V = smooth_qkv(LAYOUT, heads=3)
Add = Callable[[Rule], Policy]


@dataclass(frozen=True)
class Place:
    """Where a call stands."""

    step: int = 2
    progress: float = 0.5
    layer: int = 7


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Puts a rule into the table, as a file of its own would stand there; a policy that asks for it."""

    def put(rule: Rule) -> Policy:
        monkeypatch.setitem(rules.RULES, "new", "new:RULE")
        monkeypatch.setitem(sys.modules, f"{rules.__name__}.new", SimpleNamespace(RULE=rule))  # type: ignore[arg-type]
        return Policy(density=(0.2, 0.4, 0.6), method="new", tail=("linear1", "none", "mean"))

    return put


def diagonal(call: RuleCall) -> Tensor:
    """What lies on the query block's own tokens."""
    batch, heads = call.q.shape[:2]
    return whole_map(call.tables.own.expand(batch, heads, -1, -1), call.tables)


def call(policy: Policy, backend: str = "torch", **options: object) -> Attention:
    return attend(Q, K, V, LAYOUT, policy, backend=backend, **options)  # type: ignore[arg-type]


def test_every_name_in_the_table_is_a_rule() -> None:
    assert tuple(rules.RULES) == METHODS
    for name in METHODS:
        assert isinstance(rules.rule_of(name), Rule)
        assert Policy(method=name).method == name


def test_a_name_that_is_not_in_the_table_is_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="unknown selection method 'best': choose one of head, row, top_p, draft"):
        Policy(method="best")
    with pytest.raises(ValueError, match="unknown selection method 'best'"):
        rules.rule_of("best")


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_rule_is_a_function_from_a_call_to_what_it_keeps(add: Add, backend: str) -> None:
    policy = add(Rule(diagonal))
    result = call(policy, backend)
    tables = build_tables(LAYOUT)
    assert torch.equal(result.request.keep[:, :, : tables.q.video, : tables.k.video], tables.own.expand(1, 3, -1, -1))
    assert relative(result.out, call(policy, "reference").out) < 1e-12


def test_a_rule_sees_the_call(add: Add) -> None:
    seen: list[RuleCall] = []
    policy = add(Rule(lambda call: (seen.append(call), diagonal(call))[1]))
    place, state = Place(), {"evaluations": 3}
    bias = torch.zeros(1, LAYOUT.extra, dtype=torch.float64)
    call(policy, key_bias=bias, scale=0.3, position=place, state=state)
    (given,) = seen
    assert given.q is Q and given.k is K and given.v is V and given.key_bias is bias
    assert given.position is place and given.state is state and given.scale == 0.3
    assert given.heads.densities == (0.2, 0.4, 0.6) and given.heads.tails == policy.tail
    assert given.draft is given.draft and given.tail is given.tail


def test_state_lives_as_long_as_the_caller_keeps_it(add: Add) -> None:
    def counts(call: RuleCall) -> Tensor:
        call.state["calls"] = call.state.get("calls", 0) + 1
        return diagonal(call)

    policy, state = add(Rule(counts)), {}  # type: ignore[var-annotated]
    for _ in range(3):
        call(policy, state=state)
    call(policy)
    assert state == {"calls": 3}


def test_draft_and_tail_are_made_when_first_asked_for(add: Add) -> None:
    made: list[dict[str, object]] = []
    policy = add(Rule(lambda call: (made.append(dict(vars(call))), diagonal(call))[1]))
    call(policy)
    assert not {"draft", "tail", "_expansion"} & set(made[0])


def test_a_part_of_a_call_has_the_tail_of_its_heads(add: Add) -> None:
    made: list[RuleCall] = []
    policy = replace(add(Rule(lambda call: (made.append(call), diagonal(call))[1])), tail_gain=(0.1, 0.2, 0.3))
    call(policy)
    whole, part = made[0].tail, made[0].of_heads(slice(2, 3)).tail
    assert whole is not None and part is not None
    assert torch.equal(part.log_weight, whole.log_weight[2:]) and torch.equal(part.v_mean, whole.v_mean[:, 2:])


def test_an_error_of_a_rule_is_raised_as_it_is(add: Add) -> None:
    def fails(call: RuleCall) -> Tensor:
        raise KeyError("no such mask")

    policy = add(Rule(fails))
    with pytest.raises(KeyError, match="no such mask"):
        call(policy)
    with pytest.raises(ValueError, match="looks at more than the draft's scores"):
        select_blocks(torch.zeros(1, 3, 8, 14), build_tables(LAYOUT), policy)


def test_kernels_are_judged_without_a_rule_they_have_no_form_of(add: Add) -> None:
    """Whether a rule works says nothing about kernels."""
    policy = add(Rule(diagonal))
    assert {variant.method for variant in variants_of(policy, False)} == {GIVEN}
    assert {variant.method for variant in variants_of(replace(policy, method="row"), False)} == {"row"}


def backwards(call: RuleCall) -> HeadOrder:
    """Heads 0 and 2 take the video from its end, extra tokens stay."""
    source = torch.arange(LAYOUT.tokens)
    video = slice(LAYOUT.extra_before, LAYOUT.extra_before + LAYOUT.grid.tokens)
    source[video] = source[video].flip(0)
    return HeadOrder(source, torch.tensor([[True, False, True]]))


def test_a_head_may_have_a_token_order_of_its_own(add: Add) -> None:
    order = backwards(None)  # type: ignore[arg-type]
    found = call(add(Rule(diagonal, order=backwards)))
    plain = add(Rule(diagonal))
    q, k, v = (x[:, :, order.source] for x in (Q, K, V))
    moved = attend(q, k, v, LAYOUT, plain, backend="torch").out[:, :, order.source.argsort()]
    stays = call(plain).out
    assert torch.equal(found.out[:, 0::2], moved[:, 0::2]) and torch.equal(found.out[:, 1], stays[:, 1])
    assert not torch.equal(found.out[:, 0], stays[:, 0])


def test_a_rule_may_leave_a_call_to_the_default_or_correct_it(add: Add) -> None:
    plain = call(add(Rule(diagonal)))
    left = call(add(Rule(diagonal, attend=lambda call, default: None)))
    assert torch.equal(left.out, plain.out) and left.backend == "torch"

    def doubled(call: RuleCall, default: Default) -> Attended:
        found = default(call)
        return found._replace(out=2 * found.out)

    result = call(add(Rule(diagonal, attend=doubled)))
    assert torch.equal(result.out, 2 * plain.out)
    assert torch.equal(result.density(), plain.density()) and result.tail_work() == plain.tail_work()


def test_heads_that_are_answered_without_attention_are_no_work(add: Add) -> None:
    def repeats(call: RuleCall, default: Default) -> Attended:
        """Head 0 repeats what it gave last time; the others are computed."""
        rest = default(call.of_heads(slice(1, 3)))
        out = torch.cat([call.state["out"], rest.out], dim=1)
        return Attended(out, torch.cat([torch.zeros_like(rest.keep[:, :1]), rest.keep], dim=1))

    plain, last = call(add(Rule(diagonal))), torch.ones(1, 1, LAYOUT.tokens, Q.shape[3], dtype=Q.dtype)
    result = call(add(Rule(diagonal, attend=repeats)), state={"out": last})
    assert torch.equal(result.out[:, :1], last) and torch.equal(result.out[:, 1:], plain.out[:, 1:])
    assert result.computed_pairs()[0].tolist() == [0, *plain.computed_pairs()[0, 1:].tolist()]


def test_a_call_that_a_rule_answers_alone_has_no_backend(add: Add) -> None:
    def keeps_nothing(call: RuleCall, default: Default) -> Attended:
        return Attended(call.v, torch.zeros(1, 3, call.tables.q.total, call.tables.k.total, dtype=torch.bool))

    result = call(add(Rule(diagonal, attend=keeps_nothing)))
    assert result.out is V and result.backend == "rule new"
    assert float(result.density()) == 0 and result.tail_work() == 0
