"""Inputs and naive facts shared by the tests of the core."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, LayoutTables, build_tables
from draftattention.draftattn_core.method.draft import draft_logits, make_draft
from draftattention.draftattn_core.method.policy import METHODS, Density, Policy
from draftattention.draftattn_core.method.rules import rule_of
from draftattention.draftattn_core.method.selection import select_blocks
from draftattention.draftattn_core.method.tail.expand import make_tail
from draftattention.draftattn_core.run.schedule import Schedule

# Rules that look at the draft's scores alone: what kernels have forms of.
RANKED = tuple(name for name in METHODS if rule_of(name).ranking is not None)

SMALL_TILES = {8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8)}


def small_layout(
    grid: tuple[int, int, int] = (3, 5, 7), before: int = 0, after: int = 0, q_block: int = 16, k_block: int = 8
) -> Layout:
    """A layout with blocks small enough for a naive check; 3x5x7 has no divisor in common with any block."""
    return Layout(TokenGrid(*grid), before, after, q_block, k_block, SMALL_TILES[max(q_block, k_block)])


def smooth_qkv(
    layout: Layout,
    *,
    batch: int = 1,
    heads: int = 2,
    dim: int = 16,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    noise: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, H, L, D): random waves over the token grid plus noise, so neighbouring tokens resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    grid = layout.grid
    axes = torch.meshgrid(*(torch.linspace(0, 1, n, dtype=torch.float64) for n in grid.as_tuple()), indexing="ij")
    place = torch.stack(axes, -1).view(-1, 3)
    made = []
    for _ in range(3):
        waves = torch.randn(batch, heads, 3, dim, generator=generator, dtype=torch.float64) * 4
        phase = torch.rand(batch, heads, 1, dim, generator=generator, dtype=torch.float64) * 6.3
        video = torch.sin(place @ waves + phase)
        x = torch.randn(batch, heads, layout.tokens, dim, generator=generator, dtype=torch.float64) * noise
        x[:, :, layout.extra_before : layout.extra_before + grid.tokens] += video
        made.append(x.to(dtype))
    return made[0], made[1], made[2]


def blocks_of(tables: LayoutTables, which: str) -> list[list[int]]:
    """Host tokens of every query ("q") or key ("k") block, read off the tables."""
    table = getattr(tables, which)
    return [tables.perm[a:b].tolist() for a, b in zip(table.bounds[:-1], table.bounds[1:])]


def make_request(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, policy: Policy, key_bias: Tensor | None = None
) -> AttendRequest:
    """What `attend` hands to a backend."""
    tables = build_tables(layout, q.device)
    scale = q.shape[-1] ** -0.5
    draft = make_draft(q, k, tables, spread=policy.of(q.shape[1]).spreads)
    keep = select_blocks(draft_logits(draft, tables, scale), tables, policy)
    tail = make_tail(k, v, tables, policy.tail, gain=policy.tail_gain, k_mean=draft.k_mean)
    return AttendRequest(q, k, v, tables, keep, tail, key_bias, scale)


def with_keep(request: AttendRequest, keep: Tensor) -> AttendRequest:
    return replace(request, keep=keep)


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance of a from b."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


@dataclass(frozen=True)
class PerHead(Schedule):
    """A source of densities that gives every head of a layer its own, as budgets do.

    Attributes:
        weights: per layer, per head: factor on the schedule's density.
    """

    weights: tuple[tuple[float, ...], ...] = ()

    def density(self, progress: float, layer: int, layers: int) -> Density | None:  # type: ignore[override]
        base = super().density(progress, layer, layers)
        return None if base is None else tuple(min(1.0, base * weight) for weight in self.weights[layer])
