"""What a selection rule is given, and what it may hand back beside a map of kept block pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ...geometry.layout import LayoutTables
from ..draft import Draft, make_draft
from ..policy import Policy
from ..tail.expand import Tail, make_tail


class CallPosition(Protocol):
    """Where in a run a call stands, as far as rules ask."""

    @property
    def step(self) -> int:
        """Index of the noise level in the run, from 0."""

    @property
    def progress(self) -> float:
        """0 at the noisiest end of sampling, 1 at the clean end."""

    @property
    def layer(self) -> int:
        """Index of the attention layer, from 0."""

    @property
    def first_head(self) -> int:
        """Number of the call's first head in its layer."""

    @property
    def all_heads(self) -> int:
        """How many heads the layer has; 0 if the call holds them all."""


@dataclass
class RuleCall:
    """One self-attention call as a rule sees it.

    Attributes:
        q, k, v: (B, H, L, D) with RoPE applied, in the host's token order.
        tables: index tables of the layout, on the device of q.
        policy: density, floor and tail.
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
    scale: float
    key_bias: Tensor | None = None
    position: CallPosition | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def draft(self) -> Draft:
        """Block means of q and k, made when first asked for."""
        return make_draft(self.q, self.k, self.tables, spread=self.policy.spreads(self.q.shape[1]))

    @cached_property
    def tail(self) -> Tail | None:
        """What stands in for skipped blocks under the policy, made when first asked for."""
        policy = self.policy
        return make_tail(self.k, self.v, self.tables, policy.tail, gain=policy.tail_gain, k_mean=self.draft.k_mean)


def heads_of(call: RuleCall, known: int) -> slice:
    """Which heads of a layer a call holds, of those that something is known of.

    Raises:
        ValueError: if it is not known of as many heads as the layer has.
    """
    held, position = call.q.shape[1], call.position
    first, heads = (0, held) if position is None else (position.first_head, position.all_heads or held)
    if heads != known:
        raise ValueError(f"these masks are for {known} heads, the layer has {heads}: calibrate this model")
    return slice(first, first + held)


Select = Callable[[RuleCall], Tensor]
"""A rule: kept block pairs (B, H, q blocks, k blocks) bool of a call, extra-token blocks included and always kept."""


@dataclass(frozen=True)
class HeadOrder:
    """A token order of their own for some heads: they are computed as if the host had handed the tokens over in it.

    Attributes:
        source: (L,) int64; slot i of the host's order gets the token `source[i]`. A permutation.
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


def token_frames(tables: LayoutTables) -> tuple[Tensor, Tensor]:
    """Frame and place within the frame (row times width plus column) of every video token in block order, int64."""
    grid = tables.layout.grid
    token = tables.perm[: grid.tokens] - tables.layout.extra_before
    return token // grid.frame_tokens, token % grid.frame_tokens
