"""A call as the core hands it to a backend."""

from __future__ import annotations

from torch import Tensor

from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.backends.triton.backend import TritonBackend
from draftattention.draftattn_core.backends.triton.pointer import POINTER
from draftattention.draftattn_core.geometry.layout import LayoutTables
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules.call import RuleCall
from draftattention.draftattn_core.method.selection import forced_blocks, ranking_of
from draftattention.kernels.select import ROW_BLOCK, select
from draftattention.kernels.types import Selected


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


def select_scores(
    scores: Tensor, tables: LayoutTables, policy: Policy, block: int = ROW_BLOCK
) -> tuple[Tensor, Selected]:
    """`select_blocks` by kernels."""
    ranking = ranking_of(policy)
    limits = ranking.limits(tables, policy, policy.of(scores.shape[1]).densities)
    return select(scores, forced_blocks(tables, policy), tables.geometry, ranking.form, limits, block=block)


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
