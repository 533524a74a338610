"""Calls and whole maps for the tests of selection rules and calibration: everything naive, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules.call import RuleCall
from tests.core.cases import SMALL_TILES, smooth_qkv

SCALE = 0.35


@dataclass(frozen=True)
class Place:
    """Where a call stands in a run."""

    step: int = 0
    progress: float = 0.0
    layer: int = 0
    first_head: int = 0
    all_heads: int = 0


def layout_of(
    grid: tuple[int, int, int] = (3, 5, 7),
    before: int = 0,
    after: int = 0,
    *,
    order: str = "raster",
    q_block: int = 16,
    k_block: int = 8,
) -> Layout:
    """No block divides the tokens of 3x5x7, nor a row or a frame of it."""
    tile = SMALL_TILES[max(q_block, k_block)] if order == "tile" else None
    return Layout(TokenGrid(*grid), before, after, q_block, k_block, tile, order)


def some_bias(layout: Layout, batch: int = 2) -> Tensor:
    """A key bias that hides the last extra token of every sample and weighs the others."""
    bias = torch.randn(batch, layout.extra, generator=torch.Generator().manual_seed(5))
    bias[:, -1] = -torch.inf
    return bias


def rule_call(
    layout: Layout,
    policy: Policy | None = None,
    *,
    batch: int = 2,
    heads: int = 3,
    key_bias: Tensor | None = None,
    position: Place | None = None,
    seed: int = 0,
    noise: float = 0.5,
    dtype: torch.dtype = torch.float64,
) -> RuleCall:
    q, k, v = smooth_qkv(layout, batch=batch, heads=heads, seed=seed, noise=noise, dtype=dtype)
    policy = policy or Policy()
    return RuleCall(q, k, v, build_tables(layout), policy, policy.of(heads), SCALE, key_bias, position)


def with_policy(call: RuleCall, policy: Policy) -> RuleCall:
    return replace(call, policy=policy, heads=policy.of(call.q.shape[1]))


def whole_logits(call: RuleCall) -> Tensor:
    """(B, H, L, L) logits of a call in the host's order, key bias included."""
    logits = call.scale * call.q.double() @ call.k.double().transpose(-1, -2)
    if call.key_bias is not None:
        before, video = call.tables.layout.extra_before, call.tables.layout.grid.tokens
        for b in range(len(logits)):
            row = call.key_bias[b % len(call.key_bias)].double()
            logits[b, :, :, :before] += row[:before]
            logits[b, :, :, before + video :] += row[before:]
    return logits


def coordinates(layout: Layout, token: int) -> tuple[int, int, int]:
    """(frame, row, column) of a video token, numbered without the extra tokens before it."""
    frame, place = divmod(token, layout.grid.frame_tokens)
    return frame, *divmod(place, layout.grid.w)
