"""select: block scores -> kept pairs as a map and as ascending lists, on the device, without a sort or a host sync.

Scores are compared as integers of the same order. A row's n-th largest is found by bisection over those integers, a
head's by a radix histogram over its whole map; entries equal to it are counted out in index order, so a selection
holds exactly as many entries as it should. NaN ranks last. Shapes are fixed, so the whole can be captured in a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Geometry
from .runtime import on_device

_LENGTHS = ["heads", "rows", "columns", "q_total", "k_total", "count_stride", "threshold_stride"]
ROW_BLOCK = 1024
ROW_WARPS = 4

ROW, TOP_P, HEAD, DRAFT = 0, 1, 2, 3
METHODS = {"row": ROW, "top_p": TOP_P, "head": HEAD, "draft": DRAFT}
INT_MIN = tl.constexpr(-2147483648)
INT_MAX = tl.constexpr(2147483647)


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


@triton.jit
def _sortable(x):
    """Integers in the order of the floats: NaN as -inf, -0 as +0."""
    x = tl.where(x == x, x, float("-inf")) + 0.0
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _keys(score_row, forced_row, columns, offsets, FORCE: tl.constexpr):
    """Sortable scores of one chunk of a row, forced entries on top; lanes past the row rank below everything."""
    inside = offsets < columns
    x = tl.load(score_row + offsets, mask=inside, other=float("-inf"))
    if FORCE:
        forced = tl.load(forced_row + offsets, mask=inside, other=0)
        x = tl.where(forced != 0, float("inf"), x)
    return tl.where(inside, _sortable(x), INT_MIN)


@triton.jit
def _nth_largest(score_row, forced_row, columns, n, FORCE: tl.constexpr, BLOCK: tl.constexpr):
    """The n-th largest key of a row, and how many entries equal to it belong to the n largest."""
    low = tl.full([], INT_MIN, tl.int32)
    high = tl.full([], INT_MAX, tl.int32)
    for _ in tl.range(0, 32, num_stages=1):
        middle = (low | high) - ((low ^ high) >> 1)
        count = 0
        for start in tl.range(0, columns, BLOCK, num_stages=1):
            keys = _keys(score_row, forced_row, columns, start + tl.arange(0, BLOCK), FORCE)
            count += tl.sum((keys >= middle).to(tl.int32), 0)
        enough = count >= n
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    above = 0
    for start in tl.range(0, columns, BLOCK, num_stages=1):
        keys = _keys(score_row, forced_row, columns, start + tl.arange(0, BLOCK), FORCE)
        above += tl.sum((keys > low).to(tl.int32), 0)
    return low, n - above


@triton.jit
def _row_mass(score_row, columns, BLOCK: tl.constexpr):
    """Largest score of a row and the sum of exp(score - largest)."""
    top = tl.full([], float("-inf"), tl.float32)
    for start in tl.range(0, columns, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        x = tl.load(score_row + offsets, mask=offsets < columns, other=float("-inf"))
        top = tl.maximum(top, tl.max(tl.where(x == x, x, float("-inf")), 0))
    mass = tl.full([], 0.0, tl.float32)
    for start in tl.range(0, columns, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        x = tl.load(score_row + offsets, mask=offsets < columns, other=float("-inf"))
        mass += tl.sum(tl.exp(tl.where(x == x, x, float("-inf")) - top), 0)
    return top, mass


@triton.jit
def _or_else(x, otherwise: tl.constexpr):
    return tl.where(x == x, x, otherwise)


@triton.jit(do_not_specialize=_LENGTHS)
def row_kernel(
    score_ptr,
    forced_ptr,
    count_ptr,
    ranked_ptr,
    threshold_ptr,
    tie_ptr,
    top_p,
    heads,
    rows,
    columns,
    count_stride,
    METHOD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its threshold (row, top_p), or what its entries are ranked by in the head's whole map (head, draft)."""
    row = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    score_row = score_ptr + (pair * rows + row) * columns
    forced_row = forced_ptr + row.to(tl.int64) * columns
    if METHOD != 3:
        n = tl.load(count_ptr + (pair % heads) * count_stride + row)
    if METHOD != 0:
        top, mass = _row_mass(score_row, columns, BLOCK)
        # With an infinite or no largest score the row's softmax is undefined; it counts as zero everywhere.
        top = tl.where(tl.abs(top) < float("inf"), top, float("nan"))

    if METHOD == 1:
        # The largest key such that what lies above it does not reach the mass yet is the last one that is kept.
        low = tl.full([], INT_MIN, tl.int32)
        high = tl.full([], INT_MAX, tl.int32)
        for _ in tl.range(0, 32, num_stages=1):
            middle = (low & high) + ((low ^ high) >> 1)
            above = tl.full([], 0.0, tl.float32)
            for start in tl.range(0, columns, BLOCK, num_stages=1):
                offsets = start + tl.arange(0, BLOCK)
                x = tl.load(score_row + offsets, mask=offsets < columns, other=float("-inf"))
                keys = _keys(score_row, forced_row, columns, offsets, False)
                share = _or_else(tl.exp(x - top) / mass, 0.0)
                above += tl.sum(tl.where(keys > middle, share, 0.0), 0)
            short = above < top_p
            high = tl.where(short, middle, high)
            low = tl.where(short, low, middle + 1)
        above = tl.full([], 0.0, tl.float32)
        count = 0
        ties = 0
        of_tie = tl.full([], 0.0, tl.float32)
        for start in tl.range(0, columns, BLOCK, num_stages=1):
            offsets = start + tl.arange(0, BLOCK)
            x = tl.load(score_row + offsets, mask=offsets < columns, other=float("-inf"))
            keys = _keys(score_row, forced_row, columns, offsets, False)
            share = _or_else(tl.exp(x - top) / mass, 0.0)
            above += tl.sum(tl.where(keys > low, share, 0.0), 0)
            count += tl.sum((keys > low).to(tl.int32), 0)
            tied = (keys == low) & (offsets < columns)
            ties += tl.sum(tied.to(tl.int32), 0)
            of_tie = tl.maximum(of_tie, tl.max(tl.where(tied, share, 0.0), 0))
        wanted = tl.where(of_tie > 0.0, tl.ceil((top_p - above) / tl.maximum(of_tie, 1.0e-38)), ties.to(tl.float32))
        wanted = tl.minimum(tl.maximum(wanted, 0.0), ties.to(tl.float32)).to(tl.int32)
        n = tl.maximum(n, count + wanted)

    if METHOD == 0 or METHOD == 1:
        threshold, need = _nth_largest(score_row, forced_row, columns, n, METHOD == 0, BLOCK)
        tl.store(threshold_ptr + pair * rows + row, threshold)
        tl.store(tie_ptr + pair * rows + row, need)
    if METHOD == 2:
        threshold, need = _nth_largest(score_row, forced_row, columns, n, True, BLOCK)
        log_mass = tl.log(mass)
        passed = 0
        for start in tl.range(0, columns, BLOCK, num_stages=1):
            offsets = start + tl.arange(0, BLOCK)
            inside = offsets < columns
            keys = _keys(score_row, forced_row, columns, offsets, True)
            tied = (keys == threshold) & inside
            order = passed + tl.cumsum(tied.to(tl.int32), 0)
            promised = (keys > threshold) | (tied & (order <= need))
            passed += tl.sum(tied.to(tl.int32), 0)
            x = tl.load(score_row + offsets, mask=inside, other=float("-inf"))
            ranked = _or_else(x - top - log_mass, float("-inf"))
            ranked = tl.where(promised, float("inf"), ranked)
            tl.store(ranked_ptr + (pair * rows + row) * columns + offsets, ranked, mask=inside)
    if METHOD == 3:
        for start in tl.range(0, columns, BLOCK, num_stages=1):
            offsets = start + tl.arange(0, BLOCK)
            inside = offsets < columns
            x = tl.load(score_row + offsets, mask=inside, other=float("-inf"))
            share = _or_else(tl.exp(x - top) / mass, 0.0)
            tl.store(ranked_ptr + (pair * rows + row) * columns + offsets, share, mask=inside)


@triton.jit
def _radix_pass(base, entries, prefix, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """Eight more bits of the n-th largest of the entries that begin with `prefix`, and its rank among those left."""
    bins = tl.arange(0, 512)
    counts = tl.zeros([512], tl.int32)
    for start in tl.range(0, entries, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < entries
        keys = _sortable(tl.load(base + offsets, mask=inside, other=0.0)) ^ INT_MIN
        if SHIFT < 24:
            inside &= ((keys >> (SHIFT + 8)) & ((1 << (24 - SHIFT)) - 1)) == prefix
        # Entries that are out of the race go to bins of their own, spread so that they do not contend for one.
        digit = tl.where(inside, (keys >> SHIFT) & 255, 256 + (offsets & 255))
        counts += tl.histogram(digit, 512)
    counts = tl.where(bins < 256, counts, 0)
    from_top = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
    digit = tl.sum(((from_top >= n) & (bins < 256)).to(tl.int32), 0) - 1
    above = tl.sum(tl.where((bins > digit) & (bins < 256), counts, 0), 0)
    return (prefix << 8) | digit, n - above


@triton.jit(do_not_specialize=_LENGTHS)
def head_threshold_kernel(
    ranked_ptr,
    count_ptr,
    threshold_ptr,
    need_ptr,
    heads,
    rows,
    columns,
    BLOCK: tl.constexpr,
):
    """One head: the n-th largest entry of its whole map by a radix histogram, eight bits a pass."""
    pair = tl.program_id(0).to(tl.int64)
    entries = rows * columns
    base = ranked_ptr + pair * entries
    n = tl.load(count_ptr + pair % heads)
    prefix = tl.full([], 0, tl.int32)
    for turn in tl.static_range(4):
        prefix, n = _radix_pass(base, entries, prefix, n, 24 - 8 * turn, BLOCK)
    tl.store(threshold_ptr + pair, prefix ^ INT_MIN)
    tl.store(need_ptr + pair, n)


@triton.jit(do_not_specialize=_LENGTHS)
def tie_kernel(ranked_ptr, threshold_ptr, tie_ptr, rows, columns, BLOCK: tl.constexpr):
    """One row: how many of its entries equal the head's threshold."""
    row = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    base = ranked_ptr + (pair * rows + row) * columns
    threshold = tl.load(threshold_ptr + pair)
    ties = 0
    for start in tl.range(0, columns, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < columns
        keys = _sortable(tl.load(base + offsets, mask=inside, other=0.0))
        ties += tl.sum(((keys == threshold) & inside).to(tl.int32), 0)
    tl.store(tie_ptr + pair * rows + row, ties)


@triton.jit(do_not_specialize=_LENGTHS)
def emit_kernel(
    score_ptr,
    ranked_ptr,
    forced_ptr,
    threshold_ptr,
    tie_ptr,
    keep_ptr,
    list_ptr,
    list_count_ptr,
    rows,
    columns,
    q_total,
    k_total,
    threshold_stride,
    FORCE: tl.constexpr,
    ALL_TIES: tl.constexpr,
    RESCUE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of the whole call: its map, its list and its count."""
    row = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    out_row = (pair * q_total + row) * k_total
    is_video = row < rows
    score_row = tl.where(is_video, row, 0)
    ranked_row = ranked_ptr + (pair * rows + score_row) * columns
    forced_row = forced_ptr + score_row.to(tl.int64) * columns
    threshold = tl.load(threshold_ptr + (pair * rows + score_row) // threshold_stride)
    need = tl.load(tie_ptr + pair * rows + score_row)
    best = tl.full([], -1, tl.int32)
    if RESCUE:
        # Where skipped blocks are dropped, a row that kept none of the video would have nothing: its best block stays.
        score_base = score_ptr + (pair * rows + score_row) * columns
        highest, _ = _nth_largest(score_base, forced_row, columns, 1, False, BLOCK)
        lowest = columns
        kept = 0
        for start in tl.range(0, columns, BLOCK, num_stages=1):
            offsets = start + tl.arange(0, BLOCK)
            inside = offsets < columns
            hit = inside & (_keys(score_base, forced_row, columns, offsets, False) == highest)
            lowest = tl.minimum(lowest, tl.min(tl.where(hit, offsets, columns), 0))
            forced = tl.load(forced_row + offsets, mask=inside, other=0) != 0
            keys = _keys(ranked_row, forced_row, columns, offsets, FORCE)
            kept += tl.sum((inside & ((keys >= threshold) | forced)).to(tl.int32), 0)
        best = tl.where(kept == 0, lowest, best)
    passed = 0
    written = 0
    for start in tl.range(0, k_total, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < k_total
        scored = offsets < tl.where(is_video, columns, 0)
        keys = _keys(ranked_row, forced_row, columns, offsets, FORCE)
        tied = (keys == threshold) & scored
        forced = tl.load(forced_row + offsets, mask=scored, other=0) != 0
        if ALL_TIES:
            keep = (keys >= threshold) | forced
        else:
            order = passed + tl.cumsum(tied.to(tl.int32), 0)
            keep = (keys > threshold) | (tied & (order <= need)) | forced
        keep = tl.where(scored, keep | (offsets == best), inside)
        passed += tl.sum(tied.to(tl.int32), 0)
        slots = written + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(list_ptr + out_row + slots, offsets, mask=keep)
        tl.store(keep_ptr + out_row + offsets, keep.to(tl.uint8), mask=inside)
        written += tl.sum(keep.to(tl.int32), 0)
    tl.store(list_count_ptr + pair * q_total + row, written)


@triton.jit(do_not_specialize=_LENGTHS)
def list_kernel(keep_ptr, list_ptr, list_count_ptr, q_total, k_total, BLOCK: tl.constexpr):
    """One row: the list and count of a given map."""
    row = tl.program_id(1).to(tl.int64) * q_total + tl.program_id(0)
    written = 0
    for start in tl.range(0, k_total, BLOCK, num_stages=1):
        offsets = start + tl.arange(0, BLOCK)
        keep = tl.load(keep_ptr + row * k_total + offsets, mask=offsets < k_total, other=0) != 0
        slots = written + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(list_ptr + row * k_total + slots, offsets, mask=keep)
        written += tl.sum(keep.to(tl.int32), 0)
    tl.store(list_count_ptr + row, written)


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
    per_row = torch.empty(2, pairs, rows, dtype=torch.int32, device=device)
    thresholds, needs = per_row[0], per_row[1]
    unused = per_row
    with on_device(scores):
        row_kernel[(rows, pairs)](
            scores,
            forced_bytes,
            unused if row_counts is None else row_counts,
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
            per_head = torch.empty(2, pairs, dtype=torch.int32, device=device)
            thresholds = per_head[0]
            head_threshold_kernel[(pairs,)](
                ranked,
                head_counts,
                thresholds,
                per_head[1],
                heads,
                rows,
                columns,
                BLOCK=4 * block,
                num_warps=2 * ROW_WARPS,
            )
            if kind == HEAD:
                tie_kernel[(rows, pairs)](ranked, thresholds, needs, rows, columns, BLOCK=block, num_warps=ROW_WARPS)
                needs = per_head[1][:, None] - (needs.cumsum(-1, dtype=torch.int32) - needs)
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
