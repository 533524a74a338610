"""select: block scores -> kept pairs as a map and as ascending lists, on the device, without a sort or a host sync.

Scores are compared as integers of the same order (`ranking.py`). A row's n-th largest is found by bisection over those
integers, a head's by a radix histogram over its whole map; entries equal to it are counted out in index order, so a
selection holds exactly as many entries as it should. NaN ranks last. Shapes are fixed, so the whole can be captured in
a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .geometry import Geometry
from .runtime import on_device
from .select_heads import BINS, PASSES, head_threshold_kernel, histogram_kernel, tie_kernel
from .select_lists import emit_kernel, list_kernel
from .select_rows import row_kernel

ROW_BLOCK = 1024
ROW_WARPS = 4
# Programs that share the maps of all heads: enough to fill a large GPU.
_PROGRAMS = 1024

ROW, TOP_P, HEAD, DRAFT = 0, 1, 2, 3
METHODS = {"row": ROW, "top_p": TOP_P, "head": HEAD, "draft": DRAFT}


@dataclass(frozen=True)
class Selected:
    """A selection of a whole call, extra blocks included.

    Attributes:
        keep: (B, H, q blocks, k blocks) bool.
        lists: (B, H, q blocks, k blocks) int32, ascending; what lies past the count is not written.
        counts: (B, H, q blocks) int32.
    """

    keep: Tensor
    lists: Tensor
    counts: Tensor


def select(
    scores: Tensor,
    forced: Tensor,
    geometry: Geometry,
    method: str,
    *,
    row_counts: Tensor | None = None,
    head_counts: Tensor | None = None,
    top_p: float = 1.0,
    rescue: bool = False,
    block: int = ROW_BLOCK,
) -> Selected:
    """Kept block pairs of a call.

    Args:
        scores: (B, H, R, C) float32 contiguous, query by key video blocks.
        forced: (R, C) bool, kept whatever they score.
        geometry: of the call; extra blocks are kept by everyone and keep everyone.
        method: `row` keeps the `row_counts` best of each row, forced ones first. `top_p` keeps per row the shortest
            prefix of the sorted softmax that holds `top_p`, at least `row_counts`. `head` promises every row its
            `row_counts` best, forced ones first, and spends `head_counts` on the head's largest log-softmax. `draft`
            keeps what is not below the `head_counts`-th largest entry of the head's softmax, ties included.
        row_counts: (H, R) int32.
        head_counts: (H,) int32, from 1 to R C.
        rescue: give a row that ends without a video block its best one (`draft`).
        block: entries of a row that are looked at together.
    """
    batch, heads, rows, columns = scores.shape
    kind = METHODS[method]
    pairs = batch * heads
    by_head = kind in (HEAD, DRAFT)
    device = scores.device
    scores = scores.float().contiguous()
    forced_bytes = forced.contiguous().view(torch.uint8)
    ranked = torch.empty_like(scores) if by_head else scores

    def new(*shape: int) -> Tensor:
        # Tensors of their own: a slice of one would start where no multiple of 16 bytes is, or is, from grid to grid,
        # and Triton compiles for each.
        return torch.empty(pairs, *shape, dtype=torch.int32, device=device)

    thresholds, needs = new(rows), new(rows)
    with on_device(scores):
        row_kernel[(rows, pairs)](
            scores,
            forced_bytes,
            needs if row_counts is None else row_counts,
            ranked,
            thresholds,
            needs,
            top_p,
            heads,
            rows,
            columns,
            rows,
            METHOD=kind,
            BLOCK=block,
            num_warps=ROW_WARPS,
        )
        if by_head:
            thresholds, left = new(), new()
            bins = torch.zeros(pairs, PASSES, BINS, dtype=torch.int32, device=device)
            share = triton.cdiv(rows * columns, max(1, _PROGRAMS // pairs))
            share = 4 * block * triton.cdiv(share, 4 * block)
            programs = triton.cdiv(rows * columns, share)
            for turn in range(PASSES):
                histogram_kernel[(programs, pairs)](
                    ranked,
                    head_counts,
                    bins,
                    heads,
                    rows,
                    columns,
                    share,
                    turn,
                    BLOCK=4 * block,
                    num_warps=2 * ROW_WARPS,
                )
            head_threshold_kernel[(pairs,)](head_counts, bins, thresholds, left, heads, num_warps=ROW_WARPS)
            if kind == HEAD:
                tie_kernel[(rows, pairs)](ranked, thresholds, needs, rows, columns, BLOCK=block, num_warps=ROW_WARPS)
                needs = left[:, None] - (needs.cumsum(-1, dtype=torch.int32) - needs)
        selected = _empty_selection(batch, heads, geometry, device)
        emit_kernel[(geometry.q_total, pairs)](
            scores,
            ranked,
            forced_bytes,
            thresholds,
            needs,
            selected.keep.view(torch.uint8),
            selected.lists,
            selected.counts,
            rows,
            columns,
            geometry.q_total,
            geometry.k_total,
            rows if by_head else 1,
            FORCE=kind == ROW,
            ALL_TIES=kind == DRAFT,
            RESCUE=rescue,
            BLOCK=block,
            num_warps=ROW_WARPS,
        )
    return selected


def lists_of(keep: Tensor, block: int = ROW_BLOCK) -> Selected:
    """The lists of a map (B, H, q blocks, k blocks) bool."""
    batch, heads, q_total, k_total = keep.shape
    keep = keep.contiguous()
    lists = torch.empty(keep.shape, dtype=torch.int32, device=keep.device)
    counts = torch.empty(keep.shape[:3], dtype=torch.int32, device=keep.device)
    with on_device(keep):
        list_kernel[(q_total, batch * heads)](
            keep.view(torch.uint8), lists, counts, q_total, k_total, BLOCK=block, num_warps=ROW_WARPS
        )
    return Selected(keep, lists, counts)


def _empty_selection(batch: int, heads: int, geometry: Geometry, device: torch.device) -> Selected:
    shape = (batch, heads, geometry.q_total, geometry.k_total)
    return Selected(
        torch.empty(shape, dtype=torch.bool, device=device),
        torch.empty(shape, dtype=torch.int32, device=device),
        torch.empty(shape[:3], dtype=torch.int32, device=device),
    )
