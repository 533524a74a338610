"""RuleCall: one self-attention call, as its rule sees it and as a backend computes it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ....kernels.types import Tail
from ...geometry.blocks import block_means
from ...geometry.layout import LayoutTables
from ..draft import Draft, make_draft, spread_of_heads
from ..policy import HeadValues, Policy
from ..tail.expand import Expansion, expand_blocks, tail_from


class CallPosition(Protocol):
    """Where in a run a call stands: `step` and `layer` count noise levels and attention layers from 0, `progress` runs
    from 0 at the noisiest end of sampling to 1 at the clean one. `first_head` is the number of the call's first head in
    its layer, `all_heads` how many heads the layer has, 0 if the call holds them all."""

    @property
    def step(self) -> int: ...

    @property
    def progress(self) -> float: ...

    @property
    def layer(self) -> int: ...

    @property
    def first_head(self) -> int: ...

    @property
    def all_heads(self) -> int: ...


@dataclass(frozen=True)
class RuleCall:
    """Inputs of one call, and what rules and tails make of them, made when first asked for.

    Attributes:
        q, k, v: (B, H, L, D) with RoPE applied, in the host's token order, any strides.
        tables: index tables of the layout, on the device of q.
        policy: what the call may do. It speaks of all heads of the model's call.
        heads: the policy's values for each head of q, see `Policy.of`.
        scale: factor on q.k.
        key_bias: (B or 1, extra tokens) added to the logits of the extra tokens (-inf hides one), or None.
        position: where in the run the call stands; None if the host does not say.
        state: what the rule keeps for this layer and branch; it lives as long as the run.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tables: LayoutTables
    policy: Policy
    heads: HeadValues
    scale: float
    key_bias: Tensor | None = None
    position: CallPosition | None = None
    state: dict[str, Any] = field(default_factory=dict)

    def of_heads(self, part: slice) -> RuleCall:
        """The same call for some of its heads, as views."""
        if part == slice(0, self.q.shape[1]):
            return self
        q, k, v = (x[:, part] for x in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v, heads=self.heads.of(part))

    def reordered(self, order: HeadOrder) -> RuleCall:
        """The same call with the tokens of some heads in an order of their own."""
        q, k, v = (order.before(x) for x in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v)

    @cached_property
    def _expansion(self) -> Expansion:
        """Statistics of K and V for draft and tail, from one pass; only where some head has a tail."""
        return expand_blocks(self.k, self.v, self.tables, self.heads.tails, spread=any(self.heads.spreads))

    @cached_property
    def draft(self) -> Draft:
        """Block means of q and k, and the spread of k for the heads that rank by it."""
        wanted = self.heads.spreads
        if not self.policy.has_tail:
            return make_draft(self.q, self.k, self.tables, spread=wanted)
        found = self._expansion
        spread = None if found.k_spread is None else spread_of_heads(found.k_spread, wanted)
        return Draft(block_means(self.q, self.tables.perm, self.tables.q), found.k_mean, spread)

    @cached_property
    def tail(self) -> Tail | None:
        """What stands in for skipped blocks; None where every head drops them."""
        if not self.policy.has_tail:
            return None
        return tail_from(self._expansion, self.heads.tails, self.heads.gains)


@dataclass(frozen=True)
class HeadOrder:
    """A token order of their own for some heads: they are computed as if the host had handed the tokens over in it.

    Attributes:
        source: (L,) int64; slot i of the host's order gets the token `source[i]`. A permutation that leaves the extra
            tokens where they are.
        moved: (B, H) bool, the heads that use it.
    """

    source: Tensor
    moved: Tensor

    def before(self, x: Tensor) -> Tensor:
        """q, k or v (B, H, L, D) with the tokens of the moved heads in their own order."""
        return torch.where(self.moved[..., None, None], x.index_select(2, self.source), x)

    def after(self, out: Tensor) -> Tensor:
        """Output (B, H, L, D) of the reordered call, back in the host's order."""
        return torch.where(self.moved[..., None, None], out.index_select(2, torch.argsort(self.source)), out)


def whole_map(keep: Tensor, tables: LayoutTables) -> Tensor:
    """(B, H, q blocks, k blocks) bool from `keep` (B, H, video q blocks, video k blocks): extra blocks are kept."""
    if tables.layout.extra == 0:
        return keep
    full = keep.new_ones(*keep.shape[:2], tables.q.total, tables.k.total)
    full[:, :, : tables.q.video, : tables.k.video] = keep
    return full
