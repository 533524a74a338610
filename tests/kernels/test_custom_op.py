"""The custom op: a model around it compiles as one graph, for any length, on the CPU through the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest, new_output
from draftattention.draftattn_core.backends.triton.op import attend_into, call_op
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.policy import Policy

EXTRA = 3


def request_of(frames: int, tail: str = "linear1") -> AttendRequest:
    layout = Layout(TokenGrid(frames, 4, 5), 0, EXTRA, 16, 16)
    q, k, v = torch.randn(3, 1, 2, layout.tokens, 16)
    return attend(q, k, v, layout, Policy(density=0.4, tail=tail), backend="reference").request


@pytest.mark.parametrize("tail", ["none", "mean", "linear1"])
def test_on_the_cpu_it_is_the_reference(tail: str) -> None:
    request = request_of(3, tail)
    assert torch.equal(call_op(request), attend_reference(request))


def around(q: Tensor, k: Tensor, v: Tensor, perm: Tensor, keep: Tensor, parts: list[Tensor]) -> Tensor:
    """A piece of a model with the op in its middle."""
    video = q.shape[2] - EXTRA
    q = q * 2
    out = new_output(q)
    attend_into(out, q, k, v, perm, keep, parts, None, 0.25, [video, 0, 16, 16], "triton")
    return out.transpose(1, 2).flatten(2).relu()


def inputs_of(frames: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    request = request_of(frames)
    tail = request.tail
    assert tail is not None and tail.cov is not None and tail.u is not None and tail.w is not None
    return request.q, request.k, request.v, request.tables.perm, request.keep, list(tail.parts())


def test_compiles_without_a_break_and_once_for_all_lengths() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(around, backend=counter, fullgraph=True, dynamic=True)
    for frames in (3, 4, 6):
        inputs = inputs_of(frames)
        assert torch.allclose(compiled(*inputs), around(*inputs), atol=1e-6)
    assert counter.frame_count == 1


def test_a_length_that_is_marked_dynamic_stays_so() -> None:
    """`mark_dynamic` raises if anything on the way ties the graph to one length."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(around, backend=counter, fullgraph=True)
    for frames in (3, 4):
        inputs = q, k, v, perm, keep, parts = inputs_of(frames)
        for x in (q, k, v, keep):
            torch._dynamo.mark_dynamic(x, 2)
        torch._dynamo.mark_dynamic(keep, 3)
        torch._dynamo.mark_dynamic(perm, 0)
        torch._dynamo.mark_dynamic(parts[0], 1)
        for x in (parts[1], parts[2], parts[4], parts[5]):
            torch._dynamo.mark_dynamic(x, 2)
        assert torch.allclose(compiled(*inputs), around(*inputs), atol=1e-6)
    assert counter.frame_count == 1


def test_runs_in_inference_mode() -> None:
    with torch.inference_mode():
        request = request_of(3)
        assert torch.equal(call_op(request), attend_reference(request))


def test_op_passes_torchs_own_checks() -> None:
    request = request_of(3, "mean")
    tail = request.tail
    assert tail is not None
    arguments = (request.q, request.k, request.v, request.tables.perm, request.keep, list(tail.parts()), None, 0.25)
    torch.library.opcheck(
        attend_into,
        (new_output(request.q), *arguments, [request.tables.layout.grid.tokens, 0, 16, 16], "triton"),
        test_utils=("test_schema", "test_faketensor"),
    )
