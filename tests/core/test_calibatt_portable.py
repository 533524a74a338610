"""Portable scores: energies splatted over displacements and read back between cells, against loops over pairs."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, LayoutTables, build_tables
from draftattention.draftattn_core.method.calibatt.displacement import block_centres, default_cell
from draftattention.draftattn_core.method.calibatt.portable import PortableScores, reach_of
from tests.core.rule_cases import layout_of

LAYOUTS = {
    "raster": layout_of((3, 5, 7)),
    "extra tokens": layout_of((3, 5, 7), 4, 9),
    "tiles": layout_of((3, 5, 7), order="tile"),
}
Corner = tuple[int, int, int]


def corners(tables: LayoutTables, i: int, j: int, cell: tuple[float, ...], reach: Corner) -> dict[Corner, float]:
    """The cells around the displacement of a block pair, with their trilinear weights."""
    q, k = block_centres(tables, tables.q)[i].tolist(), block_centres(tables, tables.k)[j].tolist()
    places = [max(-r, min(r, (b - a) / c)) for a, b, c, r in zip(q, k, cell, reach)]
    found: dict[Corner, float] = defaultdict(float)
    for up in itertools.product((0, 1), repeat=3):
        weight = 1.0
        for place, upper in zip(places, up):
            rest = place - math.floor(place)
            weight *= rest if upper else 1 - rest
        if weight > 0:
            t, h, w = (math.floor(place) + upper for place, upper in zip(places, up))
            found[t, h, w] += weight
    return found


def random_energy(tables: LayoutTables, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, 3, tables.q.video, tables.k.total, generator=generator, dtype=torch.float64)
    return scores.softmax(-1)


def naive(tables: LayoutTables, energies: list[Tensor]) -> tuple[dict[Corner, Tensor], dict[Corner, float]]:
    """Sums of energies and of pairs per cell."""
    cell = default_cell(tables)
    reach = reach_of(tables.layout.grid, cell)
    sums: dict[Corner, Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
    pairs: dict[Corner, float] = defaultdict(float)
    for i, j in itertools.product(range(tables.q.video), range(tables.k.video)):
        for at, weight in corners(tables, i, j, cell, reach).items():
            for energy in energies:
                sums[at] = sums[at] + weight * energy[:, :, i, j].sum(0)
                pairs[at] += weight * len(energy)
    return sums, pairs


def scores_of(tables: LayoutTables) -> tuple[PortableScores, list[Tensor]]:
    energies = [random_energy(tables), random_energy(tables, 1, 1)]
    scores = PortableScores.for_layout(3, tables)
    for energy in energies:
        scores.add(energy, tables)
    return scores, energies


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_pair_counts_towards_the_cells_around_it(layout: Layout) -> None:
    tables = build_tables(layout)
    scores, energies = scores_of(tables)
    sums, pairs = naive(tables, energies)
    assert float(scores.pairs.sum()) == pytest.approx(3 * tables.q.video * tables.k.video)
    for at in itertools.product(*(range(-r, r + 1) for r in scores.reach)):
        index = tuple(a + r for a, r in zip(at, scores.reach))
        assert float(scores.pairs[index]) == pytest.approx(pairs.get(at, 0.0), abs=1e-12)  # type: ignore[arg-type]
        expected = sums.get(at, torch.zeros(3, dtype=torch.float64))  # type: ignore[arg-type]
        torch.testing.assert_close(scores.sums[(slice(None), *index)], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("stretch", [True, False])
@pytest.mark.parametrize("grid", [(3, 5, 7), (5, 9, 4), (1, 3, 16), (9, 5, 7)])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_pair_on_any_grid_gets_the_value_between_its_cells(
    layout: Layout, grid: tuple[int, int, int], stretch: bool
) -> None:
    made, tables = build_tables(layout), build_tables(replace(layout, grid=TokenGrid(*grid)))
    scores, _ = scores_of(made)
    volume = scores.volume()
    cell = tuple(c * (new / old if stretch else 1) for c, new, old in zip(scores.cell, grid, (3, 5, 7)))
    found = volume.scores(tables, stretch=stretch)
    assert found.shape == (1, 3, tables.q.video, tables.k.video) and found.dtype == torch.float32
    for i, j in itertools.product(range(tables.q.video), range(tables.k.video)):
        held, total = torch.zeros(3, dtype=torch.float64), 0.0
        for at, weight in corners(tables, i, j, cell, scores.reach).items():
            index = tuple(a + r for a, r in zip(at, scores.reach))
            if scores.pairs[index] > 0:
                held += weight * scores.sums[(slice(None), *index)] / scores.pairs[index]
                total += weight
        expected = (held / max(total, 1e-9)).clamp_min(1e-12).log()
        # Stored as float16.
        torch.testing.assert_close(found[0, :, i, j].double(), expected, rtol=2e-3, atol=2e-3)


def test_on_a_grid_of_whole_tiles_a_score_is_the_mean_energy_of_its_displacement() -> None:
    tables = build_tables(layout_of((4, 4, 8), order="tile", k_block=16))
    scores, energies = scores_of(tables)
    seen: dict[Corner, list[Tensor]] = defaultdict(list)
    centres = block_centres(tables, tables.q)
    for i, j in itertools.product(range(tables.q.video), range(tables.k.video)):
        at = tuple((centres[j] - centres[i]).tolist())
        seen[at] += [one[:, i, j] for energy in energies for one in energy]  # type: ignore[index]
    found = scores.volume().scores(tables)
    for i, j in itertools.product(range(tables.q.video), range(tables.k.video)):
        expected = torch.stack(seen[tuple((centres[j] - centres[i]).tolist())]).mean(0).log()  # type: ignore[index]
        torch.testing.assert_close(found[0, :, i, j].double(), expected, rtol=2e-3, atol=0)


def test_a_displacement_that_was_never_seen_ranks_below_all_others() -> None:
    narrow, long = build_tables(layout_of((1, 4, 16), order="tile")), build_tables(layout_of((4, 4, 16), order="tile"))
    scores = PortableScores.for_layout(3, narrow, (1.0, 2.0, 4.0))
    scores.add(random_energy(narrow), narrow)
    assert scores.reach[0] == 1 and not scores.pairs[0].any()
    found = scores.volume().scores(long, stretch=False)
    frames = block_centres(long, long.q)[:, None, 0] - block_centres(long, long.k)[None, :, 0]
    unseen = frames.abs() >= 1
    assert unseen.any() and (found[:, :, unseen] == math.log(1e-12)).all()
    assert (found[:, :, frames == 0] > math.log(1e-11)).all()


def test_a_head_takes_two_bytes_for_each_cell() -> None:
    scores, _ = scores_of(build_tables(LAYOUTS["tiles"]))
    cells = scores.pairs.numel()
    assert scores.volume().bytes == 3 * 2 * cells + -(-cells // 8)
