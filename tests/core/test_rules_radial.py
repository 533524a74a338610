"""Radial attention: the block mask against a token mask of every pair of frames, in any order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.layout import Layout, LayoutTables, build_tables
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.rules import radial
from tests.core.cases import blocks_of
from tests.core.rule_cases import coordinates, layout_of, rule_call

LAYOUTS = {
    "few large frames": layout_of((3, 5, 7), 2, 3),
    "many small frames": layout_of((12, 3, 5), q_block=8, k_block=8),
    "tiles": layout_of((5, 5, 6), 0, 4, order="tile"),
    "small query blocks": layout_of((6, 4, 5), q_block=8, k_block=16),
}


def sees(i: int, j: int, a: int, b: int, places: int, block: int, decay: float) -> bool:
    """Whether the token at place a of frame i sees the one at place b of frame j, by the published formulas."""
    if j == 0 or abs(i - j) <= 1:
        return True
    distance = abs(i - j)
    group = distance.bit_length()
    length = 2 ** places.bit_length() / 2**group
    if length < block and distance % int(block / length) != 0:
        return False
    width = length * decay if length * decay >= block else block
    return abs(a - b) <= width


def brute_force(tables: LayoutTables, decay: float) -> Tensor:
    layout = tables.layout
    places, block = layout.grid.frame_tokens, layout.k_block
    keep = tables.own.clone()

    def where(token: int) -> tuple[int, int]:
        frame, row, column = coordinates(layout, token - layout.extra_before)
        return frame, row * layout.grid.w + column

    queries, keys = ([[where(t) for t in one] for one in blocks_of(tables, which)] for which in "qk")
    for r in range(tables.q.video):
        for c in range(tables.k.video):
            for i in range(layout.grid.t):
                for j in range(layout.grid.t):
                    shares = [
                        sum(sees(i, j, a, b, places, block, decay) for f, a in queries[r] if f == i) / len(queries[r])
                        for g, b in keys[c]
                        if g == j
                    ]
                    seen = [share for share in shares if share > 0]
                    if seen and sum(share > 1 / 3 for share in seen) / len(seen) > 0.6:
                        keep[r, c] = True
    return keep


@pytest.mark.parametrize("decay", [0.1, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_blocks_are_kept_where_the_token_mask_fills_them(layout: Layout, decay: float) -> None:
    tables = build_tables(layout)
    assert torch.equal(radial.radial_mask(tables, decay), brute_force(tables, decay))


def test_windows_halve_with_the_distance_and_then_frames_drop_out() -> None:
    # 720p of Wan: 3,600 places, 2^12 = 4,096.
    assert [radial.window(d, 3600, 128, 1.0) for d in (0, 1, 2, 3, 4, 7, 8, 15, 16, 20)] == [
        3600, 3600, 1024, 1024, 512, 512, 256, 256, 128, 128,
    ]  # fmt: skip
    assert [radial.window(d, 3600, 128, 0.2) for d in (2, 4, 20)] == [204, 128, 128]
    # Below a block: every second frame, then every fourth.
    assert [d for d in range(32, 64) if radial.window(d, 3600, 128, 1.0) is not None] == list(range(32, 64, 2))
    assert [d for d in range(64, 128) if radial.window(d, 3600, 128, 1.0) is not None] == list(range(64, 128, 4))


def test_every_block_with_a_third_of_its_queries_in_a_frame_sees_the_first_frame() -> None:
    tables = build_tables(layout_of((6, 4, 8), q_block=16, k_block=16))
    assert radial.radial_mask(tables, 0.01)[:, :2].all()


def test_the_decay_is_the_one_that_comes_closest_to_the_density() -> None:
    tables = build_tables(layout_of((5, 6, 9), q_block=16, k_block=8))
    tried = [4.0 * i / 80 for i in range(81)]
    shares = [float(radial.radial_mask(tables, decay).float().mean()) for decay in tried]
    assert shares == sorted(shares)
    for density in (shares[0], 0.6, 0.8):
        found = float(radial.mask_for(density, tables).float().mean())
        best = min(abs(share - density) for share in shares)
        assert abs(found - density) <= best + 0.01


def test_heads_get_the_mask_of_their_density_and_extra_blocks_are_kept() -> None:
    layout = layout_of((6, 8, 12), 3, 9)
    call = rule_call(layout, Policy(density=(0.5, 0.8)), heads=2)
    tables = call.tables
    keep = radial.select(call)
    assert keep.shape == (2, 2, tables.q.total, tables.k.total)
    assert keep[:, :, tables.q.video :].all() and keep[:, :, :, tables.k.video :].all()
    for head, density in enumerate((0.5, 0.8)):
        expected = radial.mask_for(density, tables)
        assert torch.equal(keep[1, head, : tables.q.video, : tables.k.video], expected)
    assert keep[0, 0].sum() < keep[0, 1].sum()
