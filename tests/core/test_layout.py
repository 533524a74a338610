"""Layouts and their index tables: where video, extra tokens and blocks lie; the bounded cache."""

from __future__ import annotations

import threading
import weakref

import pytest
import torch

from draftattention.draftattn_core.geometry import layout as layout_module
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, LayoutTables, TableCache, build_tables
from tests.core.cases import blocks_of, small_layout

EXTRAS = [(0, 0), (5, 0), (0, 11), (5, 11), (16, 8)]
GRIDS = [(1, 1, 1), (3, 5, 7), (1, 13, 11), (4, 4, 8), (2, 3, 31)]


def host_kind(layout: Layout) -> list[str]:
    """What each host token is, written down without the tables."""
    return ["extra"] * layout.extra_before + ["video"] * layout.grid.tokens + ["extra"] * layout.extra_after


@pytest.mark.parametrize(("before", "after"), EXTRAS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("q_block", "k_block"), [(16, 8), (8, 16), (16, 16)])
def test_blocks_partition_the_tokens(
    grid: tuple[int, int, int], before: int, after: int, q_block: int, k_block: int
) -> None:
    layout = small_layout(grid, before, after, q_block, k_block)
    tables = build_tables(layout)
    kinds = host_kind(layout)
    assert layout.tokens == len(kinds)
    for which, size in (("q", q_block), ("k", k_block)):
        table = getattr(tables, which)
        blocks = blocks_of(tables, which)
        assert sorted(token for block in blocks for token in block) == list(range(layout.tokens))
        video, extra = blocks[: table.video], blocks[table.video :]
        assert all(kinds[token] == "video" for block in video for token in block)
        assert all(kinds[token] == "extra" for block in extra for token in block)
        # Nothing is padded: every block is full but the last video block and the last extra block.
        assert all(len(block) == size for block in video[:-1] + extra[:-1])
        assert table.counts.tolist() == [len(block) for block in blocks]
        assert table.total == table.video + table.extra == len(blocks)
        assert table.starts.tolist() == list(table.bounds)
        assert table.of_token.tolist() == [i for i, block in enumerate(blocks) for _ in block]


def test_extra_tokens_keep_the_hosts_order_behind_the_video() -> None:
    tables = build_tables(small_layout((3, 5, 7), 3, 2))
    assert tables.perm[-5:].tolist() == [0, 1, 2, 108, 109]


@pytest.mark.parametrize(("before", "after"), EXTRAS)
def test_inverse_undoes_the_permutation(before: int, after: int) -> None:
    tables = build_tables(small_layout((3, 5, 7), before, after))
    assert torch.equal(tables.perm[tables.inverse], torch.arange(tables.layout.tokens))


@pytest.mark.parametrize(("q_block", "k_block"), [(16, 8), (8, 16), (16, 16)])
def test_own_marks_the_key_blocks_that_share_a_token(q_block: int, k_block: int) -> None:
    tables = build_tables(small_layout((3, 5, 7), 5, 3, q_block, k_block))
    q_blocks = [set(block) for block in blocks_of(tables, "q")[: tables.q.video]]
    k_blocks = [set(block) for block in blocks_of(tables, "k")[: tables.k.video]]
    assert tables.own.tolist() == [[bool(q & k) for k in k_blocks] for q in q_blocks]


def test_frames_mark_the_key_blocks_that_hold_one_of_their_tokens() -> None:
    tables = build_tables(small_layout((5, 5, 7), 4, 0))
    blocks = blocks_of(tables, "k")[: tables.k.video]
    assert tables.first_frame.tolist() == [any(4 <= token < 4 + 35 for token in block) for block in blocks]
    assert tables.last_frame.tolist() == [any(token >= 4 + 4 * 35 for token in block) for block in blocks]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extra_before": -1}, "cannot be negative"),
        ({"q_block": 96, "k_block": 64}, "multiples of each other"),
        ({"k_block": 0}, "multiples of each other"),
        ({"order": "zigzag"}, "unknown order"),
        ({"tile": (1, 8, 8)}, "choose a tile whose product is the block size"),
        ({"q_block": 96, "k_block": 96}, "pass tile="),
    ],
)
def test_a_layout_that_cannot_be_cut_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(TokenGrid(2, 8, 8), **arguments)  # type: ignore[arg-type]


def test_a_grid_needs_a_token_along_each_axis() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        TokenGrid(4, 0, 4)


def test_the_cache_is_bounded_and_drops_the_least_recently_used() -> None:
    cache = TableCache(limit=2)
    layouts = [small_layout((1, 1, n)) for n in (1, 2, 3)]
    first = cache.get(layouts[0], "cpu")
    cache.get(layouts[1], "cpu")
    assert cache.get(layouts[0], "cpu") is first
    cache.get(layouts[2], "cpu")
    assert len(cache) == 2
    assert cache.get(layouts[0], "cpu") is first


def test_tables_are_freed_with_the_cache() -> None:
    cache = TableCache()
    tables = weakref.ref(cache.get(small_layout(), "cpu").perm)
    assert tables() is not None
    cache.clear()
    assert len(cache) == 0
    assert tables() is None


def test_threads_share_one_build(monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[Layout] = []

    def counted(layout: Layout, device: torch.device) -> LayoutTables:
        builds.append(layout)
        return build_tables(layout, device)

    monkeypatch.setattr(layout_module, "build_tables", counted)
    cache, layouts = TableCache(), [small_layout((1, 2, n)) for n in (3, 4, 5)]
    found: list[list[LayoutTables]] = [[] for _ in range(8)]
    start = threading.Barrier(len(found))

    def work(mine: list[LayoutTables]) -> None:
        start.wait()
        mine.extend(cache.get(layout, "cpu") for layout in layouts * 5)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == len(layouts)
    assert all(tables is cache.get(tables.layout, "cpu") for mine in found for tables in mine)


def test_tables_built_during_inference_serve_training_too() -> None:
    cache = TableCache()
    with torch.inference_mode():
        cache.get(small_layout(), "cpu")
    x = torch.ones(small_layout().tokens, requires_grad=True)
    x.index_select(0, cache.get(small_layout(), "cpu").perm).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(("frames", "tile"), [(1, (1, 8, 16)), (2, (2, 8, 8)), (3, (4, 4, 8)), (21, (4, 4, 8))])
def test_the_default_tile_of_a_short_video_spreads_over_the_frame(frames: int, tile: tuple[int, int, int]) -> None:
    # Four frames deep makes no sense with one or two: the block would come out as a long strip.
    assert Layout(TokenGrid(frames, 32, 32)).tile_shape == tile
    tables = build_tables(Layout(TokenGrid(frames, 32, 32)))
    if frames < 3:
        for block in blocks_of(tables, "q"):
            rows = {token // 32 % 32 for token in block}
            columns = {token % 32 for token in block}
            assert (len(rows), len(columns)) == tile[1:]
