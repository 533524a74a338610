"""Inputs with structure, and what a call on them should give: its definition, on sampled rows of any size of call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.kernels.plan import Shape
from draftattention.draftattn_core import Policy
from draftattention.draftattn_core.geometry.layout import LayoutTables, build_tables
from draftattention.draftattn_core.method.draft import make_draft
from draftattention.draftattn_core.method.selection import select_from_draft
from draftattention.kernels.types import Tail

QKV = tuple[Tensor, Tensor, Tensor]
# Relative L2 between a kernel and its definition; rounding alone gives 2.3e-3 in bfloat16 and 2.8e-4 in float16,
# whatever the length. At full size, and for peers, twice that: the definition is float32 there, peers may round more.
LIMITS = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 2e-6}
FULL_SIZE_LIMITS = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-5}


def structured(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> QKV:
    """q, k, v (1, H, L, D) that vary smoothly over the video, with noise: neighbours attend alike, as in a model.

    Views of (1, L, H, D), as hosts hand them over.
    """
    generator = torch.Generator(device).manual_seed(seed)
    t, h, w = shape.grid
    coarse = (max(2, t // 4), max(2, h // 6), max(2, w // 6))
    out = []
    for noise in (0.7, 0.7, 0.5):
        x = torch.empty(1, shape.tokens, shape.heads, shape.dim, device=device, dtype=dtype).transpose(1, 2)
        for head in range(shape.heads):
            field = torch.randn(1, shape.dim, *coarse, generator=generator, device=device)
            smooth = interpolate(field, size=(t, h, w), mode="trilinear").flatten(2)[0].T
            extra = torch.randn(shape.extra, shape.dim, generator=generator, device=device)
            grain = torch.randn(shape.tokens, shape.dim, generator=generator, device=device)
            x[0, head] = (1.4 * torch.cat([smooth, extra]) + noise * grain).to(dtype)
        out.append(x)
    return out[0], out[1], out[2]


def sampled(tokens: int, video: int, rows: int = 96) -> Tensor:
    """Positions in block order: evenly spaced ones, both ends, and both sides of where the video ends."""
    even = torch.linspace(0, tokens - 1, min(rows, tokens)).long()
    edges = torch.tensor([0, video - 1, min(video, tokens - 1), tokens - 1])
    positions: Tensor = torch.cat([even, edges]).unique()  # type: ignore[no-untyped-call]
    return positions


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error; infinite if anything found is not a number."""
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    return error if error == error else float("inf")


def defined_rows(
    qkv: QKV,
    rows: Tensor,
    scale: float,
    kept: Tensor | None = None,
    block_of_key: Tensor | None = None,
    tail: Tail | None = None,
) -> Tensor:
    """Some rows of attention by its definition, in float32 (float64 for float64), one head at a time: (H, rows, D).

    Args:
        qkv: (1, H, L, D) each, tokens in any order.
        rows: tokens to compute.
        kept: (H, rows, k blocks) bool, blocks that each row keeps; None for dense attention.
        block_of_key: (L,) block of every token as a key, with `kept`.
        tail: stands in for the video blocks that are not kept (batch of one), or None.
    """
    q, k, v = (x[0] for x in qkv)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.empty(q.shape[0], len(rows), q.shape[2], device=q.device, dtype=dtype)
    for head in range(q.shape[0]):
        queries, keys, values = q[head, rows].to(dtype), k[head].to(dtype), v[head].to(dtype)
        logits = queries @ keys.T * scale
        if kept is not None and block_of_key is not None:
            logits.masked_fill_(~kept[head][:, block_of_key], -torch.inf)
        if tail is None or kept is None:
            out[head] = logits.softmax(-1) @ values
            continue
        one = tail.of_batch(0, head)
        pooled = queries @ one.k_mean.to(dtype).T * scale + one.log_weight.to(dtype)
        pooled.masked_fill_(kept[head][:, : pooled.shape[1]], -torch.inf)
        weights = torch.cat([logits, pooled], 1).softmax(-1)
        exact, skipped = weights[:, : len(keys)], weights[:, len(keys) :]
        found = exact @ values + skipped @ one.v_mean.to(dtype)
        if one.cov is not None:
            found += scale * skipped.sum(1, keepdim=True) * (queries @ one.cov.to(dtype))
        if one.u is not None and one.w is not None:
            for rank in range(one.u.shape[1]):
                along = queries @ one.u[:, rank].to(dtype).T
                found += scale * (skipped * along) @ one.w[:, rank].to(dtype)
        out[head] = found
    return out


@dataclass(frozen=True)
class KeptBlocks:
    """A block-sparse call in the form compiled peers take: block order, blocks cut plainly from the front.

    Where the video does not fill its last block that block takes in the first text tokens, which everyone keeps
    anyway: the executed density grows by less than a thousandth, and no peer needs a short block but the last.

    Attributes:
        shape: with the blocks in use.
        q, k, v: (1, H, L, D) contiguous, tokens in block order.
        keep: (1, H, q blocks, k blocks) bool.
        scale: factor on q.k.
        host: the same q, k, v in the host's order, for peers that choose blocks themselves.
    """

    shape: Shape
    q: Tensor
    k: Tensor
    v: Tensor
    keep: Tensor
    scale: float
    host: QKV

    def sizes(self, block: int) -> Tensor:
        """(blocks,) int64 tokens of each block of that size."""
        tokens, count = self.shape.tokens, -(-self.shape.tokens // block)
        return torch.full((count,), block).index_fill_(0, torch.tensor([count - 1]), tokens - (count - 1) * block)

    def executed(self) -> float:
        """Share of all token pairs that the kept blocks hold."""
        q_sizes, k_sizes = (
            self.sizes(block).to(self.q.device, torch.float64) for block in (self.shape.q_block, self.shape.k_block)
        )
        kept = (self.keep[0].double() @ k_sizes) @ q_sizes
        return float(kept.mean() / float(self.shape.tokens) ** 2)

    def lists(self) -> tuple[Tensor, Tensor]:
        """(1, H, q blocks, k blocks) int32 kept blocks first, ascending, and their counts (1, H, q blocks) int32."""
        order = (~self.keep).to(torch.uint8).argsort(dim=-1, stable=True)
        return order.int(), self.keep.sum(-1, dtype=torch.int32)

    def expected(self, rows: Tensor) -> Tensor:
        """Those rows (block order) of the call by its definition: (H, rows, D)."""
        kept = self.keep[0][:, rows // self.shape.q_block]
        block_of_key = torch.arange(self.shape.tokens, device=self.q.device) // self.shape.k_block
        return defined_rows((self.q, self.k, self.v), rows, self.scale, kept, block_of_key)


def kept_blocks(shape: Shape, qkv: QKV, density: float) -> KeptBlocks:
    """Our selection at a density, in blocks of the shape's sizes, by the portable core (no kernel of ours runs)."""
    q, k, _ = qkv
    tables: LayoutTables = build_tables(shape.layout, q.device)
    policy, scale = Policy(density=density), shape.dim**-0.5
    draft = make_draft(q, k, tables, spread=policy.of(shape.heads).spreads)
    ours = select_from_draft(draft, tables, policy, scale)
    keep = ours
    if shape.extra:
        video = shape.layout.grid.tokens
        rows, columns = video // shape.q_block, video // shape.k_block
        blocks = (-(-shape.tokens // shape.q_block), -(-shape.tokens // shape.k_block))
        keep = torch.ones(1, shape.heads, *blocks, dtype=torch.bool, device=q.device)
        keep[:, :, :rows, :columns] = ours[:, :, :rows, :columns]
    ordered = [x.index_select(2, tables.perm) for x in qkv]
    return KeptBlocks(shape, ordered[0], ordered[1], ordered[2], keep, scale, qkv)
