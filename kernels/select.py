"""select: block scores -> kept pairs as a map and as ascending lists, on the device, without a sort or a host sync.

Scores are compared as integers of the same order (`ranking.py`). A row's n-th largest is found by bisection over those
integers, a head's by a radix histogram over its whole map; entries equal to it are counted out in index order, so a
selection holds exactly as many entries as it should. NaN ranks last. Shapes are fixed, so the whole can be captured in
a graph.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .runtime import FUSED, on_device
from .select_heads import BINS, PASSES, head_threshold_kernel, histogram_kernel, tie_kernel
from .select_lists import WORD, emit_kernel, list_kernel
from .select_rows import row_kernel
from .types import Geometry, Limits, Selected

ROW_BLOCK = 1024
ROW_WARPS = 4
# Blocks of a row whose keys stay in registers while its threshold is looked for: 2,048 entries hold a row of 131,072
# tokens of video in key blocks of 64.
HELD = 2
# Programs that share the maps of all heads: enough to fill a large GPU.
_PROGRAMS = 1024

ROW, TOP_P, HEAD, DRAFT = 0, 1, 2, 3
FORMS = {"row": ROW, "top_p": TOP_P, "head": HEAD, "draft": DRAFT}


def select(
    scores: Tensor,
    forced: Tensor,
    geometry: Geometry,
    form: str,
    limits: Limits,
    *,
    block: int = ROW_BLOCK,
) -> tuple[Tensor, Selected]:
    """Kept block pairs of a call, extra blocks included: (B, H, q blocks, k blocks) bool, and as kernels walk them.

    Args:
        scores: (B, H, R, C) float32 contiguous, query by key video blocks.
        forced: (R, C) bool, kept whatever they score.
        geometry: of the call; extra blocks are kept by everyone and keep everyone.
        form: `row` keeps the `rows` best of each row, forced ones first. `top_p` keeps per row the shortest prefix of
            the sorted softmax that holds `mass`, at least `rows`. `head` promises every row its `rows` best, forced
            ones first, and spends `heads` on the head's largest log-softmax. `draft` keeps what is not below the
            `heads`-th largest entry of the head's softmax, ties included.
        limits: `rows`, `heads` and `mass` of that; `heads` counts from 1 to R C. `rescue` is for `draft`.
        block: entries of a row that are looked at together, a power of two from 32.
    """
    batch, heads, rows, columns = scores.shape
    kind = FORMS[form]
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
            needs if limits.rows is None else limits.rows,
            ranked,
            thresholds,
            needs,
            limits.mass,
            heads,
            rows,
            columns,
            rows,
            METHOD=kind,
            BLOCK=HELD * block,
            **FUSED,
            num_warps=ROW_WARPS,
        )
        if limits.heads is not None:
            thresholds, left = head_thresholds(ranked, limits.heads, block)
            if kind == HEAD:
                tie_kernel[(rows, pairs)](
                    ranked, thresholds, needs, rows, columns, BLOCK=block, **FUSED, num_warps=ROW_WARPS
                )
                needs = left[:, None] - (needs.cumsum(-1, dtype=torch.int32) - needs)
        shape = (batch, heads, geometry.q_total, geometry.k_total)
        keep, selected = torch.empty(shape, dtype=torch.bool, device=device), _empty_selection(shape, device)
        emit_kernel[(geometry.q_total, pairs)](
            scores,
            ranked,
            forced_bytes,
            thresholds,
            needs,
            keep.view(torch.uint8),
            *selected,
            rows,
            columns,
            geometry.q_total,
            geometry.k_total,
            rows if by_head else 1,
            FORCE=kind == ROW,
            ALL_TIES=kind == DRAFT,
            RESCUE=limits.rescue,
            BLOCK=block,
            **FUSED,
            num_warps=ROW_WARPS,
        )
    return keep, selected


def head_thresholds(ranked: Tensor, head_counts: Tensor, block: int = ROW_BLOCK) -> tuple[Tensor, Tensor]:
    """The `head_counts`-th largest entry of each head's map (B, H, R, C) float32, as a sortable integer, and how many
    of those equal to it are among the `head_counts` (H,) largest: both (B * H,) int32."""
    batch, heads, rows, columns = ranked.shape
    pairs, entries, chunk = batch * heads, rows * columns, 4 * block
    thresholds, needs = (torch.empty(pairs, dtype=torch.int32, device=ranked.device) for _ in range(2))
    bins = torch.zeros(pairs, PASSES, BINS, dtype=torch.int32, device=ranked.device)
    share = chunk * triton.cdiv(triton.cdiv(entries, max(1, _PROGRAMS // pairs)), chunk)
    with on_device(ranked):
        for turn in range(PASSES):
            histogram_kernel[(triton.cdiv(entries, share), pairs)](
                ranked,
                head_counts,
                bins,
                heads,
                rows,
                columns,
                share,
                turn,
                BLOCK=chunk,
                **FUSED,
                num_warps=2 * ROW_WARPS,
            )
        head_threshold_kernel[(pairs,)](head_counts, bins, thresholds, needs, heads, **FUSED, num_warps=ROW_WARPS)
    return thresholds, needs


def lists_of(keep: Tensor, block: int = ROW_BLOCK) -> Selected:
    """A map (B, H, q blocks, k blocks) bool as a selection."""
    keep = keep.contiguous()
    batch, heads, q_total, k_total = keep.shape
    selected = _empty_selection(keep.shape, keep.device)
    with on_device(keep):
        list_kernel[(q_total, batch * heads)](
            keep.view(torch.uint8),
            *selected,
            q_total,
            k_total,
            BLOCK=block,
            **FUSED,
            num_warps=ROW_WARPS,
        )
    return selected


def _empty_selection(shape: tuple[int, ...], device: torch.device) -> Selected:
    words = triton.cdiv(shape[3], WORD)
    return Selected(
        torch.empty(shape, dtype=torch.int32, device=device),
        torch.empty(shape[:3], dtype=torch.int32, device=device),
        torch.empty(*shape[:3], words, dtype=torch.int32, device=device),
    )
