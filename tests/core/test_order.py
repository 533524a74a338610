"""Orders: permutations of any grid whose runs are compact, connected patches; the paper's tiles where they fit."""

from __future__ import annotations

import itertools
import math

import pytest

from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import DEFAULT_TILES, PAPER_TILE
from draftattention.draftattn_core.geometry.order import ORDERS, balanced_groups, make_order, tile_order

GRIDS = [(1, 1, 1), (1, 1, 13), (7, 1, 1), (1, 7, 5), (2, 3, 31), (3, 11, 13), (5, 17, 19), (6, 6, 10), (13, 1, 17)]
LARGE_GRIDS = [(21, 30, 52), (9, 24, 40), (7, 45, 53), (5, 16, 32)]
Cell = tuple[int, int, int]


def runs(grid: tuple[int, int, int], order: list[int], block: int) -> list[list[Cell]]:
    """The blocks of an order as lists of (t, h, w)."""
    _, h, w = grid
    cells = [(i // (h * w), i // w % h, i % w) for i in order]
    return [cells[i : i + block] for i in range(0, len(cells), block)]


def is_connected(cells: list[Cell]) -> bool:
    left = set(cells)
    stack = [left.pop()]
    while stack:
        t, h, w = stack.pop()
        for near in ((t + 1, h, w), (t - 1, h, w), (t, h + 1, w), (t, h - 1, w), (t, h, w + 1), (t, h, w - 1)):
            if near in left:
                left.remove(near)
                stack.append(near)
    return not left


def extents(cells: list[Cell]) -> list[int]:
    return [max(axis) - min(axis) + 1 for axis in zip(*cells)]


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("grid", GRIDS + [(9, 24, 40)], ids=str)
def test_every_order_is_a_permutation_of_any_grid(name: str, grid: tuple[int, int, int]) -> None:
    order = make_order(name, TokenGrid(*grid), (2, 2, 4))
    assert sorted(order.tolist()) == list(range(math.prod(grid)))


def test_an_unknown_order_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown order 'zigzag'.*tile"):
        make_order("zigzag", TokenGrid(1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize(
    ("grid", "tile"),
    [
        ((3, 16, 32), PAPER_TILE),
        ((2, 24, 48), PAPER_TILE),
        ((8, 8, 16), (4, 4, 8)),
        ((8, 12, 8), (4, 4, 4)),
        ((4, 6, 8), (2, 2, 4)),
        ((6, 6, 6), (2, 3, 3)),
    ],
    ids=str,
)
def test_blocks_are_exactly_the_tiles_where_they_divide_the_grid(grid: Cell, tile: Cell) -> None:
    # The paper's regions written as an index formula: tile (a, b, c) holds the tokens t*H*W + h*W + w with
    # t in a*p_t..(a+1)*p_t and so on. No code of the order is used.
    (t, h, w), (p_t, p_h, p_w) = grid, tile
    expected = {
        frozenset(
            (a * p_t + i) * h * w + (b * p_h + j) * w + c * p_w + k
            for i, j, k in itertools.product(range(p_t), range(p_h), range(p_w))
        )
        for a, b, c in itertools.product(range(t // p_t), range(h // p_h), range(w // p_w))
    }
    order = tile_order(TokenGrid(*grid), tile).tolist()
    size = p_t * p_h * p_w
    blocks = [frozenset(order[i : i + size]) for i in range(0, len(order), size)]
    assert len(blocks) == len(expected)
    assert set(blocks) == expected


@pytest.mark.parametrize("grid", [(8, 8, 16), (4, 12, 24)], ids=str)
def test_half_a_4x4x8_tile_is_a_4x4x4_tile(grid: Cell) -> None:
    # Key blocks of 64 under query blocks of 128: both cuts of the one order are compact.
    blocks = runs(grid, tile_order(TokenGrid(*grid), (4, 4, 8)).tolist(), 64)
    assert all(extents(cells) == [4, 4, 4] for cells in blocks)


@pytest.mark.parametrize("tile", [PAPER_TILE, *(DEFAULT_TILES[size] for size in (128, 64, 32, 16))], ids=str)
@pytest.mark.parametrize("grid", GRIDS + LARGE_GRIDS, ids=str)
def test_every_block_is_one_connected_patch(grid: Cell, tile: Cell) -> None:
    blocks = runs(grid, tile_order(TokenGrid(*grid), tile).tolist(), math.prod(tile))
    assert all(is_connected(cells) for cells in blocks)


@pytest.mark.parametrize("tile", [PAPER_TILE, (4, 4, 8), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("grid", LARGE_GRIDS, ids=str)
def test_no_block_is_much_longer_than_its_tile(grid: Cell, tile: Cell) -> None:
    groups_t = [b - a for a, b in balanced_groups(grid[0], tile[0])]
    groups_h = [b - a for a, b in balanced_groups(grid[1], tile[1])]
    columns = math.ceil(math.prod(tile) / (min(groups_t) * min(groups_h))) + 1
    blocks = runs(grid, tile_order(TokenGrid(*grid), tile).tolist(), math.prod(tile))
    turning = 0
    for t, h, w in map(extents, blocks):
        # Where the walk turns around, a block lies in two groups: along h within a frame group, along t between them.
        assert t <= 2 * max(groups_t)
        assert h <= 2 * max(groups_h)
        assert w <= columns
        turning += t > max(groups_t) or h > max(groups_h)
    assert turning <= len(groups_t) * len(groups_h)


@pytest.mark.parametrize(("size", "target"), [(1, 4), (2, 4), (5, 4), (6, 4), (21, 4), (30, 8), (53, 8)])
def test_groups_are_consecutive_and_balanced(size: int, target: int) -> None:
    groups = balanced_groups(size, target)
    assert [i for a, b in groups for i in range(a, b)] == list(range(size))
    lengths = [b - a for a, b in groups]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= math.ceil(1.5 * target)


def test_hilbert_visits_neighbours_on_a_cube() -> None:
    cells = runs((8, 8, 8), make_order("hilbert", TokenGrid(8, 8, 8), (1, 1, 8)).tolist(), 512)[0]
    steps = [sum(abs(a - b) for a, b in zip(x, y)) for x, y in zip(cells[:-1], cells[1:])]
    assert set(steps) == {1}
