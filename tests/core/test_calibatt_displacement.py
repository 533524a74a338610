"""Portable masks: displacements of block centres, kept by their mean score, and the same set on any grid."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, LayoutTables, build_tables
from draftattention.draftattn_core.method.calibatt.displacement import (
    DisplacementMask,
    DisplacementScores,
    block_centres,
    block_displacements,
    default_cell,
    keep_displacements,
)
from tests.core.cases import blocks_of
from tests.core.rule_cases import coordinates, layout_of

LAYOUTS = {
    "raster": layout_of((3, 5, 7)),
    "extra tokens": layout_of((3, 5, 7), 4, 9),
    "tiles": layout_of((3, 5, 7), order="tile"),
    "tiles, equal blocks": layout_of((4, 4, 8), 3, 0, order="tile", k_block=16),
}
CELL = (1.0, 2.0, 3.0)
REACH = (2, 2, 3)


def centres(tables: LayoutTables, which: str) -> list[tuple[float, float, float]]:
    layout = tables.layout
    found = []
    for block in blocks_of(tables, which)[: getattr(tables, which).video]:
        places = [coordinates(layout, token - layout.extra_before) for token in block]
        found.append(tuple(sum(axis) / len(axis) for axis in zip(*places)))
    return found  # type: ignore[return-value]


def cell_of(tables: LayoutTables, i: int, j: int) -> tuple[int, int, int]:
    """Displacement of a block pair in cells, limited to the reach."""
    q, k = centres(tables, "q")[i], centres(tables, "k")[j]
    found = []
    for a, b, cell, reach in zip(q, k, CELL, REACH):
        cells = (b - a) / cell
        rounded = math.copysign(math.floor(abs(cells) + 0.5 + 1e-6), cells)
        found.append(int(max(-reach, min(reach, rounded))))
    return found[0], found[1], found[2]


def random_scores(tables: LayoutTables, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, tables.q.video, tables.k.video, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_block_lies_at_the_mean_of_its_tokens(layout: Layout) -> None:
    tables = build_tables(layout)
    for which in ("q", "k"):
        expected = torch.tensor(centres(tables, which), dtype=torch.float64)
        torch.testing.assert_close(block_centres(tables, getattr(tables, which)), expected, rtol=1e-13, atol=1e-13)


def test_on_a_grid_of_whole_tiles_displacements_are_whole_tiles_and_symmetric() -> None:
    tables = build_tables(Layout(TokenGrid(4, 8, 8), q_block=8, k_block=8, tile=(2, 2, 2)))
    assert default_cell(tables) == (2.0, 2.0, 2.0)
    apart = block_displacements(tables, default_cell(tables))
    assert torch.equal(apart, -apart.transpose(0, 1))
    assert apart.flatten(0, 1).unique(dim=0).shape[0] == 3 * 7 * 7


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_scores_are_averaged_over_the_pairs_of_a_displacement(layout: Layout) -> None:
    tables = build_tables(layout)
    first, second = random_scores(tables), random_scores(tables, batch=1, seed=1)
    scores = DisplacementScores.of_reach(3, REACH, CELL)
    scores.add(first, tables)
    scores.add(second, tables)
    seen: dict[tuple[int, int, int], list[Tensor]] = defaultdict(list)
    for i in range(tables.q.video):
        for j in range(tables.k.video):
            seen[cell_of(tables, i, j)] += [*first[:, :, i, j], *second[:, :, i, j]]
    mean = scores.mean()
    for t in range(-2, 3):
        for h in range(-2, 3):
            for w in range(-3, 4):
                values = seen.get((t, h, w))
                expected = torch.stack(values).mean(0) if values else torch.zeros(3, dtype=torch.float64)
                torch.testing.assert_close(mean[:, t + 2, h + 2, w + 3], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_heads_keep_their_best_displacements_up_to_their_density(layout: Layout) -> None:
    tables = build_tables(layout)
    scores = DisplacementScores.of_reach(3, REACH, CELL)
    scores.add(random_scores(tables), tables)
    densities = (0.1, 0.35, 1.0)
    found = keep_displacements(scores, densities)
    mean, pairs = scores.mean(), scores.pairs
    for head, density in enumerate(densities):
        cells = [c for c in pairs.nonzero().tolist() if tuple(c) != REACH]
        cells.sort(key=lambda c: -float(mean[(head, *c)]))
        kept, covered = {(0, 0, 0)}, float(pairs[REACH])
        for cell in cells:
            if covered >= density * float(pairs.sum()):
                break
            kept.add((cell[0] - 2, cell[1] - 2, cell[2] - 3))
            covered += float(pairs[tuple(cell)])
        assert set(found.displacements(head)) == kept


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("grid", [(3, 5, 7), (5, 9, 4), (1, 3, 16)])
def test_a_mask_keeps_the_pairs_of_its_displacements_on_any_grid(layout: Layout, grid: tuple[int, int, int]) -> None:
    tables = build_tables(replace(layout, grid=TokenGrid(*grid)))
    kept = torch.rand(3, 5, 5, 7, generator=torch.Generator().manual_seed(4)) < 0.3
    first_frame = torch.tensor([False, True, False])
    mask = DisplacementMask(CELL, kept, first_frame).mask(tables)
    assert mask.shape == (3, tables.q.video, tables.k.video)
    for j, keys in enumerate(blocks_of(tables, "k")[: tables.k.video]):
        in_first = any(coordinates(tables.layout, t - layout.extra_before)[0] == 0 for t in keys)
        for i, queries in enumerate(blocks_of(tables, "q")[: tables.q.video]):
            t, h, w = cell_of(tables, i, j)
            for head in range(3):
                expected = bool(kept[head, t + 2, h + 2, w + 3])
                expected |= bool(set(queries) & set(keys)) or (head == 1 and in_first)
                assert bool(mask[head, i, j]) == expected


def test_a_head_that_looks_at_the_first_frame_gets_all_of_it() -> None:
    tables = build_tables(layout_of((4, 4, 8), k_block=16))
    scores = torch.full((1, 2, tables.q.video, tables.k.video), 0.1)
    near = tables.own.float()
    scores[:, :] += near
    scores[:, 1, :, tables.first_frame] = 0.9
    sums = DisplacementScores.of_reach(2, (3, 4, 1), default_cell(tables))
    sums.add(scores, tables)
    found = keep_displacements(sums, (0.3, 0.5))
    assert found.first_frame.tolist() == [False, True]
    assert found.mask(tables)[1][:, tables.first_frame].all()


def test_a_middle_that_no_pair_has_decides_nothing_about_the_first_frame() -> None:
    # Two key blocks side by side in one query block: none of them lies in its middle.
    tables = build_tables(layout_of((4, 4, 8)))
    scores = torch.rand(1, 1, tables.q.video, tables.k.video, generator=torch.Generator().manual_seed(0)) / 100
    scores += tables.own
    sums = DisplacementScores.of_reach(1, (3, 4, 1), (1.0, 1.0, 4.0))
    sums.add(scores, tables)
    assert sums.pairs[3, 4, 1] == 0
    assert not keep_displacements(sums, (0.1,)).first_frame.any()


def test_the_size_is_counted_in_bits() -> None:
    assert DisplacementMask(CELL, torch.ones(3, 5, 5, 7, dtype=torch.bool), torch.zeros(3).bool()).bytes == 66 + 1


def test_as_many_densities_as_heads_are_asked_for() -> None:
    with pytest.raises(ValueError, match="one per head"):
        keep_displacements(DisplacementScores.of_reach(3, REACH, CELL), (0.5,))
