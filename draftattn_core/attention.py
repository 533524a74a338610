"""The core call: draft, selection, tail and a backend, put together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .backends.registry import Backend, NoBackendError, Problem, choose_backend
from .backends.request import AttendRequest, BackendFailure
from .geometry.blocks import block_means, without_autocast
from .geometry.layout import Layout, LayoutTables, TableCache, build_tables
from .method.draft import Draft, make_draft, spread_of_heads
from .method.policy import Policy, head_tails
from .method.selection import select_from_draft
from .method.tail.expand import Tail, expand_blocks, tail_from


@dataclass(frozen=True)
class Attention:
    """What a sparse call returns when asked for more than its output.

    Attributes:
        out: (B, H, L, D) in the dtype of q; (B, L, H * D) of it is a view.
        request: what the backend computed, with the selection and the tail.
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

    def tail_work(self) -> float:
        """Work of the tail beside that of the dense call: its key equivalents over the call's keys, 0 without one."""
        tail, layout = self.request.tail, self.request.tables.layout
        if tail is None:
            return 0.0
        blocks, dim = tail.k_mean.shape[2], tail.k_mean.shape[3]
        keys = blocks * (1 + tail.ranks) + (dim / 2 if tail.cov is not None else 0.0)
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
) -> Attention:
    """Like `draft_attention`, returning the selection, the tail and the backend's name with the output."""
    check_inputs(q, k, v, layout, key_bias)
    policy.check_heads(q.shape[1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale multiplies q.k and must be positive and finite, got {scale}: None is D ** -0.5")
    problem = Problem.of(q, layout.q_block, layout.k_block, policy, biased=key_bias is not None)
    chosen: Backend = choose_backend(backend, problem)
    tables: LayoutTables = cache.get(layout, q.device) if cache is not None else build_tables(layout, q.device)
    with without_autocast(q.device):
        if chosen.run is not None:
            try:
                out, request = chosen.run(q, k, v, tables, policy, key_bias, scale)
                return Attention(out, request, chosen.name)
            except BackendFailure:
                # It refuses from now on, and says why.
                pass
            # Out here the exception is gone, and with it every tensor of the frames it came through.
            chosen = choose_backend(backend, problem)
        draft, tail = _draft_and_tail(q, k, v, tables, policy)
        keep = select_from_draft(draft, tables, policy, scale)
        request = AttendRequest(q, k, v, tables, keep, tail, key_bias, scale)
        return Attention(chosen.attend(request), request, chosen.name)


def _draft_and_tail(q: Tensor, k: Tensor, v: Tensor, tables: LayoutTables, policy: Policy) -> tuple[Draft, Tail | None]:
    """Draft and tail of a call, from one pass over K."""
    wanted = policy.spreads(q.shape[1])
    if not policy.has_tail:
        return make_draft(q, k, tables, spread=wanted), None
    names = head_tails(policy.tail, q.shape[1])
    found = expand_blocks(k, v, tables, names, spread=any(wanted))
    k_spread = None if found.k_spread is None else spread_of_heads(found.k_spread, wanted)
    draft = Draft(block_means(q, tables.perm, tables.q), found.k_mean, k_spread)
    return draft, tail_from(found, names, policy.tail_gain)


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

    Returns:
        (B, H, L, D) in the dtype of q. Its (B, L, H * D) form is a view.

    Raises:
        ValueError: if the inputs do not fit the layout, the scale is out of range, or no backend can serve them.
    """
    return attend(q, k, v, layout, policy, backend=backend, key_bias=key_bias, scale=scale, cache=cache).out
