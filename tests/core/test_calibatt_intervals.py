"""Interval lists: nothing lost, gaps closed smallest first, steps grouped only where every two are alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.method.calibatt.intervals import (
    Intervals,
    close_gaps,
    group_steps,
    intervals_of,
    overlap,
    share_masks,
)


def random_mask(*shape: int, density: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < density


def runs_of(row: list[bool]) -> list[tuple[int, int]]:
    """Runs [start, end) of a row, one entry at a time."""
    runs, start = [], None
    for place, kept in enumerate([*row, False]):
        if kept and start is None:
            start = place
        elif not kept and start is not None:
            runs.append((start, place))
            start = None
    return runs


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_list_holds_the_runs_of_its_mask_and_gives_it_back(density: float) -> None:
    mask = random_mask(2, 3, 5, 13, density=density)
    found = intervals_of(mask)
    longest = 0
    for row, bounds in zip(mask.view(-1, 13), found.bounds.flatten(0, 2)):
        runs = runs_of(row.tolist())
        longest = max(longest, len(runs))
        assert [tuple(pair) for pair in bounds.tolist()] == runs + [(13, 13)] * (len(bounds) - len(runs))
    assert found.bounds.shape[-2] == longest
    assert torch.equal(found.mask(), mask)
    assert found.bytes == found.bounds.numel() * 2


def test_many_unused_entries_do_not_disturb_the_mask() -> None:
    mask = torch.zeros(2, 600, dtype=torch.bool)
    mask[0, ::2] = True
    mask[1, 599] = True
    assert torch.equal(intervals_of(mask).mask(), mask)


def test_more_blocks_than_a_list_can_number_are_refused() -> None:
    with pytest.raises(ValueError, match="32767"):
        intervals_of(torch.ones(1, 32768, dtype=torch.bool))


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_gaps_are_closed_smallest_first_until_few_runs_are_left(most: int) -> None:
    mask = random_mask(2, 40, 23, density=0.4, seed=2)
    closed = close_gaps(mask, most)
    for row, found in zip(mask.view(-1, 23).tolist(), closed.view(-1, 23).tolist()):
        runs = runs_of(row)
        while len(runs) > most:
            gaps = [b[0] - a[1] for a, b in zip(runs[:-1], runs[1:])]
            at = gaps.index(min(gaps))
            runs[at : at + 2] = [(runs[at][0], runs[at + 1][1])]
        assert runs_of(found) == runs


def test_closing_no_gap_changes_nothing_and_no_run_at_all_is_refused() -> None:
    mask = random_mask(3, 9, 17)
    assert torch.equal(close_gaps(mask, 17), mask)
    with pytest.raises(ValueError, match="at least one run"):
        close_gaps(mask, 0)


def test_the_mask_of_a_row_without_blocks_is_empty() -> None:
    empty = torch.zeros(2, 3, 5, dtype=torch.bool)
    assert torch.equal(intervals_of(empty).mask(), empty)
    assert torch.equal(close_gaps(empty, 1), empty)
    assert Intervals(torch.empty(2, 3, 0, 2, dtype=torch.int16), 5).bytes == 0


def test_overlap_is_intersection_over_union() -> None:
    a, b = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()
    assert overlap(a, b) == pytest.approx(1 / 3)
    assert overlap(a & False, b & False) == 1.0


def drifting_masks(steps: int) -> list[Tensor]:
    """Masks that change a little from step to step: neighbours are alike, ends are not."""
    mask, masks = random_mask(2, 10, 10, seed=4), []
    for step in range(steps):
        mask = mask.clone()
        flipped = torch.randperm(200, generator=torch.Generator().manual_seed(step))[:6]
        mask.view(-1)[flipped] ^= True
        masks.append(mask)
    return masks


@pytest.mark.parametrize("first", [0, 4, 12])
@pytest.mark.parametrize("iou", [0.5, 0.8, 0.93, 0.999])
def test_groups_are_cliques_that_cover_every_step_once(iou: float, first: int) -> None:
    masks = drifting_masks(12)
    groups = group_steps(masks, iou, first)
    assert sorted(step for group in groups for step in group) == list(range(12))
    for group in groups:
        assert len(group) == 1 or min(group) >= first
        assert all(overlap(masks[a], masks[b]) > iou for a in group for b in group if a != b)
    if (iou, first) == (0.8, 0):
        assert 1 < len(groups) < 12  # neither a chain of neighbours nor nothing at all


def test_a_chain_of_similar_steps_is_no_clique() -> None:
    row = torch.zeros(3, 40, dtype=torch.bool)
    for step, start in enumerate((0, 1, 2)):
        row[step, start : start + 30] = True
    masks = list(row)
    assert overlap(masks[0], masks[1]) == overlap(masks[1], masks[2]) > 0.9 > overlap(masks[0], masks[2])
    assert group_steps(masks, 0.9) == [[0], [1, 2]]


def test_a_group_shares_what_any_of_its_steps_keeps() -> None:
    masks = drifting_masks(6)
    shared = share_masks(masks, [[0], [1, 3], [2, 4, 5]])
    assert torch.equal(shared[0], masks[0])
    assert shared[1] is shared[3] and torch.equal(shared[1], masks[1] | masks[3])
    assert shared[2] is shared[5] and torch.equal(shared[2], masks[2] | masks[4] | masks[5])
