"""Index arithmetic beyond 2^31 elements, on small or only reserved tensors; Hopper: `hopper_cases.py`."""

from __future__ import annotations

import pytest
import torch

from draftattention.draftattn_core.backends.triton import launch
from draftattention.draftattn_core.backends.triton.pointer import POINTER
from draftattention.draftattn_core.method.policy import Policy
from draftattention.kernels.attend_pointer import attend_pointer
from draftattention.kernels.types import AttendInputs
from tests.kernels.calls import call_of, run_call
from tests.kernels.far import move_programs_far, reserved
from tests.kernels.problems import LIMITS, TINY, lists_of, make_problem, poisoned_output, relative_error, truth_of

SMALL = {"grid": (2, 4, 5), "after": 5, "batch": 2, "heads": 1, "bias": "per_batch", "scattered": True}
GAPS = (64, 72, 80, 88)


@pytest.mark.parametrize(("method", "tail"), [("head", "linear2"), ("top_p", "mean"), ("draft", "none")])
def test_a_whole_call_on_far_heads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, method: str, tail: str) -> None:
    request = make_problem(**SMALL).request
    arguments = (request.q, request.k, request.v, request.tables)
    policy = Policy(density=0.4, method=method, tail=tail)
    out, near = run_call(*arguments, policy, request.key_bias, request.scale)
    move_programs_far(monkeypatch)
    far_out, far = run_call(*arguments, policy, request.key_bias, request.scale)
    assert torch.equal(far.keep, near.keep)
    assert torch.equal(far_out, out)


def test_lists_of_a_map_on_far_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_problem(**SMALL).request
    out = POINTER.attend(request)
    move_programs_far(monkeypatch)
    assert torch.equal(POINTER.attend(request), out)


def test_an_access_that_misses_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from far heads, a tensor whose stride is another than the kernel was told is missed."""
    request = make_problem(**SMALL).request
    lists = lists_of(request.keep)
    move_programs_far(monkeypatch)
    geometry = request.tables.geometry
    lse = torch.empty(2, 1, geometry.tokens + 1)
    inputs = AttendInputs(request.q, request.k, request.v, geometry, lists, None, request.key_bias, request.scale)
    with pytest.raises(Exception, match="outside every tensor"):
        attend_pointer(inputs, TINY, poisoned_output(request), lse)


def test_log_sum_exp_of_far_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_problem(**SMALL).request
    lists = lists_of(request.keep)
    geometry = request.tables.geometry
    inputs = AttendInputs(request.q, request.k, request.v, geometry, lists, None, request.key_bias, request.scale)
    found = []
    for _ in range(2):
        lse = torch.full((2, 1, geometry.tokens), torch.nan)
        attend_pointer(inputs, TINY, poisoned_output(request), lse)
        found.append(lse)
        move_programs_far(monkeypatch)
    assert torch.equal(*found)


def test_attend_reads_and_writes_rows_that_lie_far_apart() -> None:
    problem = make_problem(grid=(1, 5, 7), after=5, heads=1, dtype=torch.float16)
    request = problem.request
    tensors = (request.q, request.k, request.v, poisoned_output(request))
    q, k, v, out = (reserved(x, gap) for x, gap in zip(tensors, GAPS))
    lists = lists_of(request.keep)
    attend_pointer(AttendInputs(q, k, v, problem.geometry, lists, None, None, request.scale), TINY, out)
    assert relative_error(out, truth_of(request)) < LIMITS[torch.float16]


def test_prepare_reads_rows_that_lie_far_apart() -> None:
    request = make_problem(grid=(1, 5, 7), after=5, heads=1, dtype=torch.float16).request
    policy = Policy(tail="linear1")
    near = launch.prepare(call_of(request.q, request.k, request.v, request.tables, policy), copy=True)
    q, k, v = (reserved(x, gap) for x, gap in zip((request.q, request.k, request.v), GAPS))
    far = launch.prepare(call_of(q, k, v, request.tables, policy), copy=True)
    for found, expected in zip(far, near):
        for name, x in vars(expected).items() if not isinstance(expected, tuple) else enumerate(expected):
            y = getattr(found, name) if isinstance(name, str) else found[name]
            assert torch.equal(x, y), name
