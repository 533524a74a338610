"""A call as the core hands it to a backend."""

from __future__ import annotations

from torch import Tensor

from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.backends.triton.backend import TritonBackend
from draftattention.draftattn_core.backends.triton.pointer import POINTER
from draftattention.draftattn_core.geometry.layout import LayoutTables
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules.call import RuleCall


def call_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    policy: Policy,
    key_bias: Tensor | None = None,
    scale: float = 0.1,
) -> RuleCall:
    return RuleCall(q, k, v, tables, policy, policy.of(q.shape[1]), scale, key_bias)


def run_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    policy: Policy,
    key_bias: Tensor | None = None,
    scale: float = 0.1,
    backend: TritonBackend = POINTER,
) -> tuple[Tensor, AttendRequest]:
    """A whole call by kernels."""
    return backend.run(call_of(q, k, v, tables, policy, key_bias, scale))
