"""Repetition heads: heads whose spatial rows attend alike, computed for a few anchor rows of each frame only.

arXiv 2603.05503, "spatial repetition": a spatial row is the W tokens of one height of one frame; its pattern is all
their attention, flattened. Where the rows of a frame have similar patterns, five anchor rows are computed densely and
every other row takes the output of the nearest anchor, token by token. `survey.py` measures how alike they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...geometry.layout import LayoutTables

ANCHORS = 5
GAMMA = 0.87


def host_key_bias(tables: LayoutTables, key_bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The key bias on all keys of a call in the host's order, (B or 1, 1, 1, L); None without one."""
    if key_bias is None or tables.layout.extra == 0:
        return None
    before, video = tables.layout.extra_before, tables.layout.grid.tokens
    bias = key_bias.new_zeros(key_bias.shape[0], 1, 1, tables.layout.tokens, dtype=dtype)
    bias[..., :before] = key_bias[:, None, None, :before]
    bias[..., before + video :] = key_bias[:, None, None, before:]
    return bias


def anchor_rows(rows: int, anchors: int = ANCHORS) -> tuple[int, ...]:
    """The anchor rows among `rows` spatial rows: the middles of `anchors` equal parts; all rows if there are no more.

    The paper gives their number, not their places; these minimise the distance of the farthest row.
    """
    if anchors < 1:
        raise ValueError(f"a repetition head needs at least one anchor row per frame, got {anchors}")
    if rows <= anchors:
        return tuple(range(rows))
    return tuple((2 * i + 1) * rows // (2 * anchors) for i in range(anchors))


@dataclass(frozen=True)
class AnchorTokens:
    """Which queries of a call are computed, and whose output each token takes.

    Attributes:
        computed: (n,) int64 host tokens, ascending: the anchor rows of every frame, and all extra tokens.
        taken_from: (L,) int64, for every host token the index into `computed` of the output it takes.
    """

    computed: Tensor
    taken_from: Tensor


def anchor_tokens(tables: LayoutTables, anchors: int = ANCHORS) -> AnchorTokens:
    """Index tables of `anchors` anchor rows per frame; of two anchors as near, the upper one is taken."""

    def sources() -> Tensor:
        """(L,) host token, on the CPU, whose output each host token takes."""
        grid, before = tables.layout.grid, tables.layout.extra_before
        rows = torch.tensor(anchor_rows(grid.h, anchors))
        nearest = rows[(torch.arange(grid.h)[:, None] - rows).abs().argmin(-1)]
        source = torch.arange(tables.layout.tokens)
        video = source[before : before + grid.tokens].view(grid.as_tuple()).index_select(1, nearest)
        source[before : before + grid.tokens] = video.flatten()
        return source

    device = tables.perm.device
    computed = tables.constant(("anchors", anchors), lambda: torch.unique(sources()).to(device))
    taken_from = tables.constant(
        ("rows of anchors", anchors), lambda: torch.unique(sources(), return_inverse=True)[1].to(device)
    )
    return AnchorTokens(computed, taken_from)


def attend_anchors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    scale: float,
    *,
    key_bias: Tensor | None = None,
    anchors: int = ANCHORS,
) -> Tensor:
    """Output (B, H, L, D) of repetition heads: anchor rows and extra tokens dense, other rows as their nearest anchor.

    Args:
        q, k, v: (B, H, L, D) of the repetition heads alone, in the host's token order.
        key_bias: (B or 1, extra tokens) added to the logits of the extra tokens, or None.
        anchors: anchor rows in each frame.
    """
    tokens = anchor_tokens(tables, anchors)
    bias = host_key_bias(tables, key_bias, q.dtype)
    out = scaled_dot_product_attention(q.index_select(2, tokens.computed), k, v, attn_mask=bias, scale=scale)
    return out.index_select(2, tokens.taken_from)


def anchor_work(tables: LayoutTables, anchors: int = ANCHORS) -> float:
    """Share of a dense call's token pairs that a repetition head computes: anchors / H without extra tokens."""
    layout = tables.layout
    rows = len(anchor_rows(layout.grid.h, anchors))
    return (layout.grid.t * rows * layout.grid.w + layout.extra) / layout.tokens


def repetition_heads(similarity: Tensor, gamma: float = GAMMA) -> tuple[bool, ...]:
    """Per head whether it is a repetition head: similarity (prompts, H), mean over prompts, above `gamma`."""
    return tuple(bool(above) for above in (similarity.double().mean(0) > gamma).tolist())
