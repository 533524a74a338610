"""The core call: draft, selection, tail and a backend, put together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .backends.call_kind import CallKind
from .backends.registry import Backend, NoBackendError, choose_backend, without_codes, without_fp8
from .backends.request import AttendRequest, BackendFailure
from .geometry.blocks import without_autocast
from .geometry.layout import Layout, TableCache, build_tables
from .method.policy import Policy
from .method.rules import rule_of
from .method.rules.call import CallPosition, RuleCall
from .method.rules.rule import Attended, Rule
from .method.tail.formula import name_of, tail_key_equivalents


@dataclass(frozen=True)
class Attention:
    """What a sparse call returns when asked for more than its output.

    Attributes:
        out: (B, H, L, D) in the dtype of q; (B, L, H * D) of it is a view.
        request: what the backend computed, with the selection and the tail. Where a rule gives heads a token order of
            their own, q, k and v are in that order; `out` never is. Where a rule answers some heads itself, it is what
            was counted as work, and the tail is that of the heads last computed.
        backend: name of the backend that ran.
    """

    out: Tensor
    request: AttendRequest
    backend: str

    def computed_pairs(self) -> Tensor:
        """Token pairs computed exactly, extra tokens included, per batch and head: (B, H) int64 on the device."""
        return self._row_pairs().sum(-1)

    def density(self) -> Tensor:
        """Share of the call's token pairs computed exactly, extra tokens included: 0-d float32 on the device."""
        pairs, tokens = self._row_pairs(), self.request.tables.layout.tokens
        # Integers up to the last division: not every device has float64.
        return pairs.sum().float() / (float(tokens) ** 2 * pairs.shape[0] * pairs.shape[1])

    def _row_pairs(self) -> Tensor:
        """What one row of query blocks adds to `computed_pairs`: (B, H, q blocks) int64."""
        keep, tables, table = self.request.keep, self.request.tables, self.request.tables.k
        # Torch adds up a copy of the map in the type of the sum.
        blocks = keep.sum(-1, dtype=torch.int32) if self.request.counts is None else self.request.counts
        keys = blocks * table.size
        for block in {table.video - 1, table.total - 1}:
            short = table.size - (table.bounds[block + 1] - table.bounds[block])
            if short:
                keys.add_(keep[..., block], alpha=-short)
        return keys * tables.constant("query counts", lambda: tables.q.counts.long())

    def codes(self) -> float:
        """Share of the heads whose scores were those of INT8 codes."""
        bits = self.request.bits
        return bits.count(8) / len(bits) if bits else 0.0

    def tail_work(self) -> float:
        """Work of the tail beside that of the dense call: its key equivalents over the call's keys, 0 without one."""
        tail, layout = self.request.tail, self.request.tables.layout
        if tail is None:
            return 0.0
        keys = tail_key_equivalents(name_of(tail), tail.k_mean.shape[2], tail.k_mean.shape[3])
        return keys * layout.grid.tokens / float(layout.tokens) ** 2


def check_inputs(q: Tensor, k: Tensor, v: Tensor, layout: Layout, key_bias: Tensor | None) -> None:
    """Raises ValueError with what to do if shapes, dtypes or devices do not fit the layout."""
    if q.dim() != 4 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q, k and v must share one shape (batch, heads, tokens, head size), got {tuple(q.shape)}, "
            f"{tuple(k.shape)}, {tuple(v.shape)}: sparse attention serves self-attention only"
        )
    if q.shape[2] != layout.tokens:
        raise ValueError(f"the call has {q.shape[2]} tokens but the layout ({layout}) accounts for {layout.tokens}")
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError("q, k and v must share one dtype and one device")
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise NoBackendError("sparse attention computes no gradients: call it under torch.no_grad() or run dense")
    if key_bias is not None and not key_bias.is_floating_point():
        raise ValueError(f"key_bias is added to logits, got {key_bias.dtype}: turn a mask into 0 and -inf")
    if key_bias is not None and (key_bias.dim() != 2 or key_bias.shape[1] != layout.extra):
        raise ValueError(
            f"key_bias must be (batch or 1, {layout.extra} extra tokens), got {tuple(key_bias.shape)}: "
            "a mask on video tokens cannot be expressed, run such a call dense"
        )
    if key_bias is not None and key_bias.shape[0] not in (1, q.shape[0]):
        raise ValueError(f"key_bias has batch {key_bias.shape[0]}, q has {q.shape[0]}")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    policy: Policy,
    *,
    backend: str = "auto",
    key_bias: Tensor | None = None,
    scale: float | None = None,
    cache: TableCache | None = None,
    position: CallPosition | None = None,
    state: dict[str, Any] | None = None,
) -> Attention:
    """Like `draft_attention`, returning the selection, the tail and the backend's name with the output."""
    check_inputs(q, k, v, layout, key_bias)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale multiplies q.k and must be positive and finite, got {scale}: None is D ** -0.5")
    values, rule = policy.of(q.shape[1]), rule_of(policy.method)
    kind = CallKind.of(q, layout.q_block, layout.k_block, policy, biased=key_bias is not None)
    chosen = choose_backend(backend, kind)
    if policy.has_codes and without_codes(chosen, kind) is not None:
        policy = replace(policy, bits=16)
        values = policy.of(q.shape[1])
    if policy.fp8_values and without_fp8(chosen, kind) is not None:
        policy = replace(policy, fp8_values=False)
    tables = cache.get(layout, q.device) if cache is not None else build_tables(layout, q.device)
    call = RuleCall(q, k, v, tables, policy, values, scale, key_bias, position, {} if state is None else state)
    with without_autocast(q.device):
        if rule.order is None and rule.attend is None:
            return _compute(call, rule, backend, chosen)
        return _by_rule(call, rule, backend, chosen)


def _compute(call: RuleCall, rule: Rule, backend: str, chosen: Backend) -> Attention:
    """A call by its rule's selection and the backend chosen for it."""
    if chosen.run is not None:
        keep = None if rule.ranking is not None else rule.select(call)
        try:
            return Attention(*chosen.run(call, keep), chosen.name)
        except BackendFailure:
            # It refuses from now on, and says why.
            pass
        # Outside `except`, the traceback no longer keeps the call's tensors alive.
        layout, biased = call.tables.layout, call.key_bias is not None
        kind = CallKind.of(call.q, layout.q_block, layout.k_block, call.policy, biased=biased)
        chosen = choose_backend(backend, kind)
    request = AttendRequest.of(call, rule.select(call), call.tail)
    if chosen.run is not None or 8 not in chosen.bits:
        request = replace(request, bits=())
    return Attention(chosen.attend(request), request, chosen.name)


def _by_rule(call: RuleCall, rule: Rule, backend: str, chosen: Backend) -> Attention:
    """A call whose rule gives heads an order of their own or answers calls itself."""
    computed: list[Attention] = []

    def default(call: RuleCall) -> Attended:
        order = None if rule.order is None else rule.order(call)
        if order is not None:
            call = call.reordered(order)
        found = _compute(call, rule, backend, chosen)
        if order is not None:
            found = replace(found, out=order.after(found.out))
        computed[:] = [found]
        return Attended(found.out, found.request.keep)

    answered = None if rule.attend is None else rule.attend(call, default)
    if answered is None:
        default(call)
        return computed[0]
    # The last computed call says by which backend and with which tail.
    backend = computed[0].backend if computed else f"rule {call.policy.method}"
    if computed and answered.keep is computed[0].request.keep:
        return replace(computed[0], out=answered.out)
    tail = computed[0].request.tail if computed else None
    return Attention(answered.out, AttendRequest.of(call, answered.keep, tail), backend)


def draft_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    policy: Policy,
    *,
    backend: str = "auto",
    key_bias: Tensor | None = None,
    scale: float | None = None,
    cache: TableCache | None = None,
    position: CallPosition | None = None,
    state: dict[str, Any] | None = None,
) -> Tensor:
    """Block-sparse self-attention over a token grid, with a tail for the skipped blocks.

    Args:
        q, k, v: (B, H, L, D) with RoPE applied, in the host's token order, any strides; float16, bfloat16, float32
            or float64.
        layout: token grid, extra tokens, block sizes and order; L must equal `layout.tokens`.
        policy: density, selection method and tail.
        backend: a name from the registry, or "auto".
        key_bias: (B or 1, extra tokens) added to the logits of the extra tokens; -inf hides one. None for no mask.
        scale: factor on q.k, positive; None for D ** -0.5.
        cache: where index tables are kept between calls; without one they are built anew.
        position: where in a run the call stands, for the rules that ask.
        state: what the policy's rule keeps from call to call: one dict per layer and branch, which lives as long as the
            run. None for a new one.

    Returns:
        (B, H, L, D) in the dtype of q. Its (B, L, H * D) form is a view.

    Raises:
        ValueError: if the inputs do not fit the layout, the scale is out of range, or no backend can serve them.
    """
    return attend(
        q,
        k,
        v,
        layout,
        policy,
        backend=backend,
        key_bias=key_bias,
        scale=scale,
        cache=cache,
        position=position,
        state=state,
    ).out
