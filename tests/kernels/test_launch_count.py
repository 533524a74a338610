"""How many kernels a call launches once its constants are on the device: each launch costs a few microseconds."""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from draftattention.draftattn_core.attention import Attention
from draftattention.draftattn_core.backends.triton import head_groups
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import Policy
from tests.kernels.calls import run_call
from tests.kernels.launches import Launches

HEADS = 4
# A short last block and extra tokens: nothing is spared.
LAYOUT = Layout(TokenGrid(3, 9, 13), 7, 30)
GAINS = (0.0, 0.5, 1.0, 0.25)
EVERY_HEAD_ITS_OWN = Policy(
    density=(0.1, 0.2, 0.3, 0.4), tail=("none", "mean", "linear0", "linear1"), tail_gain=GAINS, keep_first_frame=True
)


class AtenLaunches(TorchDispatchMode):
    """Counts operators of torch that launch a kernel: those that neither make a view nor only take memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("aten.") and not func.is_view and not name.startswith(("aten.empty", "aten._unsafe_view")):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def launches_of(monkeypatch: pytest.MonkeyPatch, policy: Policy, halves: bool) -> tuple[int, int]:
    """Operators of torch in a call like the one before it, and in counting its density."""
    monkeypatch.setattr(head_groups, "LEAST_PROGRAMS", 1 if halves else 1 << 30)
    q, k, v = torch.zeros(3, 1, LAYOUT.tokens, HEADS, 128, dtype=torch.bfloat16).transpose(2, 3)
    tables = build_tables(LAYOUT)
    bias = torch.zeros(1, LAYOUT.extra)

    def call() -> Attention:
        out, request = run_call(q, k, v, tables, policy, bias)
        return Attention(out, request, "triton")

    call().density()
    calling, counting = AtenLaunches(), AtenLaunches()

    def from_the_host(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was made from numbers of the host")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "tensor", from_the_host)
        with calling:
            result = call()
        with counting:
            result.density()
    return calling.seen.total(), counting.seen.total()


@pytest.mark.parametrize(
    ("policy", "whole", "halves"),
    [
        (Policy(), 14, 36),
        (Policy(tail_gain=GAINS), 14, 36),
        (EVERY_HEAD_ITS_OWN, 15, 37),
        (Policy(bits=8), 16, 41),
        (Policy(method="row"), 10, 28),
        (Policy(method="draft"), 11, 30),
        (Policy(method="top_p", tail="none"), 1, 4),
    ],
    ids=["head", "gains", "every head its own", "int8", "row", "draft", "top_p without a tail"],
)
def test_a_call_launches_little_beside_its_kernels(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, policy: Policy, whole: int, halves: int
) -> None:
    """Fewer are welcome; a higher number here has to be worth it."""
    in_one_piece, counting = launches_of(monkeypatch, policy, halves=False)
    assert in_one_piece <= whole and counting <= 7
    launches.keys.clear()
    in_halves, counting = launches_of(monkeypatch, policy, halves=True)
    assert in_halves <= halves and counting <= 7
    # Each of the two calls above took eleven kernels of ours a half at most.
    assert len(launches.keys) <= 2 * 2 * 11
