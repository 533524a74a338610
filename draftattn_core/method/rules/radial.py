"""Radial attention (arXiv 2506.19852): one static mask, narrower the farther two frames are apart.

Tokens of frames d apart see each other where their places in the frame differ by at most a window that halves with
every doubling of d; where the window would be smaller than a block, only every few frames are kept instead. All see
the first frame. The mask is made for tokens and then turned into blocks, in any order of the tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...geometry.layout import LayoutTables
from .call import RuleCall, whole_map
from .places import on_the_host, token_frames
from .rule import Rule

_SOLVER_STEPS = 12
# Decays beyond this make every window of a video of a few hundred frames as wide as a frame.
_LARGEST_DECAY = 64.0


def window(distance: int, frame_tokens: int, block: int, decay: float) -> int | None:
    """Largest difference of places at which two tokens of frames `distance` apart see each other; None for never.

    Up to a distance of 1 a whole frame (the released code has half a frame at 1 in some versions for Wan). Beyond it,
    with g = bit_length(distance) and w = 2^bit_length(frame_tokens) / 2^g, the larger of w decay and a block; where
    w is smaller than a block, only at multiples of int(block / w) frames.
    """
    if distance <= 1:
        return frame_tokens
    length = 2.0 ** (frame_tokens.bit_length() - distance.bit_length())
    if length < block and distance % int(block / length):
        return None
    return math.floor(max(length * decay, block))


def radial_mask(tables: LayoutTables, decay: float) -> Tensor:
    """(R, C) bool: block pairs that the token mask fills well enough.

    For every pair of frames: among the keys of the block that any query of the block sees, more than 60 % must be seen
    by more than a third of the queries (a token counts only for its own pair of frames; the shares are of the block's
    real tokens). A pair of blocks is kept if any of its pairs of frames is, or if it holds keys of the first frame that
    pass the same rule, or if the blocks share a token, so that no row is empty.

    Args:
        decay: factor on the windows; published are 0.2 (Wan 2.1), 0.8 (Wan 2.2), 0.95 (HunyuanVideo).
    """
    return tables.constant(("radial", decay), lambda: _make_mask(tables, decay).to(tables.perm.device))


def _make_mask(tables: LayoutTables, decay: float) -> Tensor:
    """The mask on the CPU."""
    tables = on_the_host(tables)
    grid = tables.layout.grid
    places, video = grid.frame_tokens, grid.tokens
    frame, place = token_frames(tables)
    q_block, k_block = (table.of_token[:video] for table in (tables.q, tables.k))
    counts = q_block.bincount(minlength=tables.q.video)
    # Key block of every (frame, place).
    block_of = torch.empty(grid.t, places, dtype=torch.int64)
    block_of[frame, place] = k_block
    keep = tables.own.clone()
    for i in range(grid.t):
        mine = frame == i
        rows, row_of = torch.unique(q_block[mine], return_inverse=True)
        # How many of a block's queries in this frame have a place below p.
        below = torch.zeros(len(rows), places + 1, dtype=torch.int32)
        below[row_of, place[mine] + 1] = 1
        below = below.cumsum(1, dtype=torch.int32)
        for j in range(grid.t):
            width = places if j == 0 else window(abs(i - j), places, tables.k.size, decay)
            if width is None:
                continue
            at = torch.arange(places)
            seen = below[:, (at + width + 1).clamp_max(places)] - below[:, (at - width).clamp_min(0)]
            by_enough = 3 * seen > counts[rows, None]
            some, enough = (
                torch.zeros(len(rows), tables.k.video, dtype=torch.int32).index_add_(1, block_of[j], hit.int())
                for hit in (seen > 0, by_enough)
            )
            keep[rows] |= 5 * enough > 3 * some
    return keep


def decay_for(density: float, tables: LayoutTables) -> float:
    """The decay whose mask comes closest to a share of the video's block pairs. The mask's own range may not reach it.

    Found on the host by bisection; masks are kept with the tables, so this costs once per layout and density.
    """
    low, high = 0.0, _LARGEST_DECAY
    best = (math.inf, 0.0)
    for step in range(_SOLVER_STEPS + 2):
        # The ends first; then halves, and decays below 1 are where most of the range lies.
        decay = (low, high)[step] if step < 2 else _between(low, high)
        found = float(_make_mask(tables, decay).float().mean())
        best = min(best, (abs(found - density), decay))
        if step >= 2:
            low, high = (decay, high) if found < density else (low, decay)
    return best[1]


def _between(low: float, high: float) -> float:
    """A decay between two, in equal ratios of 1/16 more."""
    return math.sqrt((low + 1 / 16) * (high + 1 / 16)) - 1 / 16


def mask_for(density: float, tables: LayoutTables) -> Tensor:
    """`radial_mask` with the decay of `decay_for`, kept with the tables."""
    return tables.constant(
        ("radial density", density), lambda: _make_mask(tables, decay_for(density, tables)).to(tables.perm.device)
    )


def select(call: RuleCall) -> Tensor:
    """The mask closest to each head's density; q and k are not looked at."""
    keep = torch.stack([mask_for(density, call.tables) for density in call.heads.densities])
    return whole_map(keep.expand(call.q.shape[0], -1, -1, -1), call.tables)


RULE = Rule(select)
