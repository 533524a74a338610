"""Re-ttention (arXiv 2505.22918): a static window, with the denominator and the residual of the last full step.

Per row, full steps leave the share of its softmax mass that the window keeps (the ratio) and what the window's output,
scaled by that share, lacks (the residual). Sparse steps scale their output by the ratio, which grows by a constant per
step, and add the residual. It needs full steps and keeps one whole output per layer: a row of the bench, not a preset.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...geometry.layout import LayoutTables
from ..calibatt.energy import kept_mass
from .call import RuleCall, whole_map
from .places import on_the_host, token_frames

RATIO_GROWTH = 0.04


def window_mask(tables: LayoutTables, density: float) -> Tensor:
    """(R, C) bool: block pairs with two tokens, of any frames, whose places differ by at most half the window.

    The window is `density` of a frame's tokens, as published; its blocks are kept whole, so calls come out denser.
    Made for any order: the released code masks tokens in raster order.
    """

    def make() -> Tensor:
        host = on_the_host(tables)
        grid = host.layout.grid
        half = int(density * grid.frame_tokens) // 2
        place = token_frames(host)[1]
        q_block, k_block = (table.of_token[: grid.tokens] for table in (host.q, host.k))
        queries, keys = (
            torch.zeros(table.video, grid.frame_tokens + 1, dtype=torch.int32) for table in (host.q, host.k)
        )
        queries[q_block, place] = 1
        keys[k_block, place + 1] = 1
        # Keys of a block at places below p; a query at p sees one if any lies in p - half .. p + half.
        below = keys.cumsum(1, dtype=torch.int32)
        at = torch.arange(grid.frame_tokens)
        inside = below[:, (at + half + 1).clamp_max(grid.frame_tokens)] - below[:, (at - half).clamp_min(0)]
        seen = torch.matmul(queries[:, :-1].float(), (inside > 0).float().t()) > 0
        return seen.to(tables.perm.device)

    return tables.constant(("place window", density), make)


def select(call: RuleCall) -> Tensor:
    """The window of each head's density; q and k are not looked at."""
    masks = torch.stack([window_mask(call.tables, density) for density in call.heads.densities])
    return whole_map(masks.expand(call.q.shape[0], -1, -1, -1), call.tables)


@dataclass(frozen=True)
class Remembered:
    """What a full step leaves for the sparse steps after it.

    Attributes:
        ratio: (B, H, L, 1) share of each row's mass that the mask keeps.
        residual: (B, H, L, D) full output less the scaled sparse one, in the dtype of the outputs.
    """

    ratio: Tensor
    residual: Tensor

    def corrected(self, sparse: Tensor, since: int, growth: float = RATIO_GROWTH) -> Tensor:
        """Output (B, H, L, D) of a sparse step from its masked one, `since` steps after the first one that followed.

        The ratio grows by `growth` with each such step (0.04 in the released code), without a limit.
        """
        return (sparse * (self.ratio + since * growth) + self.residual).to(sparse.dtype)


def remember(call: RuleCall, keep: Tensor, full: Tensor, sparse: Tensor) -> Remembered:
    """What a full step leaves: `full` and `sparse` are its outputs (B, H, L, D) without and with the mask `keep`.

    The mask is (B, H, q blocks, k blocks) bool. Costs the product of q and k once more.
    """
    ratio = kept_mass(call.q, call.k, call.tables, keep, call.scale, key_bias=call.key_bias).unsqueeze(-1)
    return Remembered(ratio, (full - sparse * ratio).to(full.dtype))
