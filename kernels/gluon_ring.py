"""attend in Gluon, the ring of tiles: its slots, and the warps that fill them in the order in which they are used.

A slot is a tile of 128 rows, or two of 64. In memory a tile is 64 columns side by side, panel behind panel, and a box
of TMA is 64 rows of one panel: where its boxes go makes a slot one tile or two.
"""

# Functions of Gluon take no types.
# mypy: ignore-errors

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma


@gluon.jit
def span(block, SIZE: gl.constexpr, video_blocks, video_tokens, tokens):
    """First position of a block and the position behind its last token, in block order."""
    extra = block >= video_blocks
    start = gl.where(extra, video_tokens + (block - video_blocks) * SIZE, block * SIZE)
    end = gl.minimum(start + SIZE, gl.where(extra, tokens, video_tokens))
    return start, end


@gluon.jit
def whole_entries(entries, count, video_tokens, k_total, K_BLOCK: gl.constexpr):
    """How many entries of an ascending list are whole blocks of video: all but some of the last."""
    LANES: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    first_edge = video_tokens // K_BLOCK
    edges = count * 0
    for start in range(0, k_total - first_edge, 128):
        places = count - 1 - start - gl.arange(0, 128, layout=LANES)
        blocks = gl.load(entries + places, mask=places >= 0, other=-1)
        edges += gl.sum((blocks >= first_edge).to(gl.int32), 0)
    return count - edges


@gluon.jit
def next_slot(tiles, full, free, turn, SLOTS: gl.constexpr):
    """The slot whose turn it is, its two barriers, and the phase in which it is used."""
    index = turn % SLOTS
    return tiles.index(index), full.index(index), free.index(index), (turn // SLOTS) & 1


@gluon.jit
def _fetch(desc, plane, row, column, slot, bar, first, stride: gl.constexpr, DIM: gl.constexpr):
    """Fetch 64 rows of a matrix of `desc` into quarters `first`, `first + stride`, ... of a slot, 64 columns each."""
    BOX: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
    quarters = slot._reinterpret(slot.dtype, [DIM // 32, 1, 64, 64], BOX)
    for panel in gl.static_range(DIM // 64):
        quarter = quarters.index(first + panel * stride)
        tma.async_copy_global_to_shared(desc, [plane, row, column + panel * 64], bar, quarter)


@gluon.jit
def _fetch_keys(desc, pair, row, row_2, tiles, full, free, turn, DIM: gl.constexpr, SLOTS: gl.constexpr):
    """Fetch two times 64 rows, so that they lie in a slot as one tile of 128."""
    slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
    mbarrier.wait(empty, phase ^ 1)
    mbarrier.expect(bar, 128 * DIM * 2)
    _fetch(desc, pair, row, 0, slot, bar, 0, 2, DIM)
    _fetch(desc, pair, row_2, 0, slot, bar, 1, 2, DIM)
    return turn + 1


@gluon.jit
def _fetch_two(
    desc, column, desc_2, column_2, pair, row, tiles, full, free, turn, DIM: gl.constexpr, SLOTS: gl.constexpr
):
    """Fetch 64 rows of two matrices, so that they lie in a slot as two tiles of 64."""
    slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
    mbarrier.wait(empty, phase ^ 1)
    mbarrier.expect(bar, 128 * DIM * 2)
    _fetch(desc, pair, row, column, slot, bar, 0, 1, DIM)
    _fetch(desc_2, pair, row, column_2, slot, bar, DIM // 64, 1, DIM)
    return turn + 1


@gluon.jit
def _fetch_some(desc, pair, row, ROWS: gl.constexpr, tiles, full, free, turn, DIM: gl.constexpr, SLOTS: gl.constexpr):
    """Fetch 64 or 128 neighbouring rows, so that they lie in a slot as one tile."""
    slot, bar, empty, phase = next_slot(tiles, full, free, turn, SLOTS)
    mbarrier.wait(empty, phase ^ 1)
    mbarrier.expect(bar, ROWS * DIM * 2)
    for part in gl.static_range(ROWS // 64):
        _fetch(desc, pair, row + part * 64, 0, slot, bar, part, ROWS // 64, DIM)
    return turn + 1


@gluon.jit
def produce(
    descs,
    entries,
    plane,
    sizes,
    ring,
    DIM: gl.constexpr,
    K_BLOCK: gl.constexpr,
    TAIL: gl.constexpr,
    COV: gl.constexpr,
    RANKS: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """The warp that fetches: every tile, in the order in which the others use them."""
    k_desc, v_desc, k_mean, v_mean, u_desc, w_desc, cov_desc = descs
    pooled_end, whole, count, video_tokens, tokens, k_video, k_total = sizes
    tiles, full, free = ring
    turn = 0
    if TAIL:
        for start in range(0, pooled_end, 64):
            if RANKS == 0:
                turn = _fetch_two(k_mean, 0, v_mean, 0, plane, start, tiles, full, free, turn, DIM, SLOTS)
            else:
                turn = _fetch_two(k_mean, 0, u_desc, 0, plane, start, tiles, full, free, turn, DIM, SLOTS)
                if RANKS == 1:
                    turn = _fetch_two(v_mean, 0, w_desc, 0, plane, start, tiles, full, free, turn, DIM, SLOTS)
                else:
                    turn = _fetch_two(u_desc, DIM, v_mean, 0, plane, start, tiles, full, free, turn, DIM, SLOTS)
                    turn = _fetch_two(w_desc, 0, w_desc, DIM, plane, start, tiles, full, free, turn, DIM, SLOTS)
        if COV:
            turn = _fetch_some(cov_desc, plane, 0, DIM, tiles, full, free, turn, DIM, SLOTS)
    # Scores of a step are asked for before the sums of the step before: so K is one step ahead of V.
    if K_BLOCK == 128:
        steps = whole
    else:
        steps = whole // 2
    row = 0
    row_2 = 64
    for step in range(steps):
        last, last_2 = row, row_2
        if K_BLOCK == 128:
            row = gl.load(entries + step) * 128
            row_2 = row + 64
        else:
            row = gl.load(entries + 2 * step) * 64
            row_2 = gl.load(entries + 2 * step + 1) * 64
        turn = _fetch_keys(k_desc, plane, row, row_2, tiles, full, free, turn, DIM, SLOTS)
        if step > 0:
            turn = _fetch_keys(v_desc, plane, last, last_2, tiles, full, free, turn, DIM, SLOTS)
    if steps > 0:
        turn = _fetch_keys(v_desc, plane, row, row_2, tiles, full, free, turn, DIM, SLOTS)
    for entry in range(steps * (128 // K_BLOCK), count):
        start, _ = span(gl.load(entries + entry), K_BLOCK, k_video, video_tokens, tokens)
        turn = _fetch_some(k_desc, plane, start, K_BLOCK, tiles, full, free, turn, DIM, SLOTS)
        turn = _fetch_some(v_desc, plane, start, K_BLOCK, tiles, full, free, turn, DIM, SLOTS)
