"""CalibAtt's masks: the mass each step keeps, the fewest blocks that hold it, and the vote over prompts."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from draftattention.draftattn_core.method.calibatt.masks import EnergyTarget, MaskVotes, fewest_blocks


def random_energy(*shape: int, seed: int = 0) -> torch.Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).softmax(-1)


def test_the_published_constants_start_near_dense_and_fall_to_the_floor() -> None:
    fifty = EnergyTarget.for_steps(50)
    assert fifty.at(0, 50) == 0.99
    assert fifty.at(5, 50) == pytest.approx(0.84 + 0.15 * math.exp(-1.6))
    assert fifty.at(49, 50) == pytest.approx(0.84, abs=1e-6)
    four = EnergyTarget.for_steps(4)
    assert [round(four.at(step, 4), 4) for step in range(4)] == [0.863, 0.7874, 0.769, 0.7645]


def test_other_step_counts_and_floors_say_that_they_are_ours() -> None:
    assert "ours" not in EnergyTarget.for_steps(50).source + EnergyTarget.for_steps(4).source
    assert all("ours" in EnergyTarget.for_steps(steps).source for steps in (1, 8, 20, 100))
    assert "ours" in EnergyTarget.for_steps(50, floor=0.9).source
    # The same noise, the same share: only t / T counts.
    assert EnergyTarget.for_steps(20).at(4, 20) == EnergyTarget.for_steps(50).at(10, 50)
    assert EnergyTarget.for_steps(20, floor=0.9).at(19, 20) == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("values", [(1.1, 0.9, 1.0), (0.5, -0.1, 1.0), (0.5, 0.9, -1.0), (0.5, 0.9, math.nan)])
def test_constants_out_of_range_are_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError):
        EnergyTarget(*values)
    with pytest.raises(ValueError, match="count them from 0"):
        EnergyTarget(0.8, 0.9, 1.0).at(4, 4)


@pytest.mark.parametrize("mass", [0.0, 0.3, 0.77, 0.9, 1.0])
def test_no_smaller_set_of_blocks_holds_the_mass(mass: float) -> None:
    energy = random_energy(2, 3, 4, 7)
    keep = fewest_blocks(energy, mass)
    for row, kept in zip(energy.view(-1, 7), keep.view(-1, 7)):
        count = int(kept.sum())
        assert float(row[kept].sum()) >= mass - 1e-12
        sums = [float(row[list(some)].sum()) for n in range(count) for some in combinations(range(7), n)]
        assert all(total < mass for total in sums)
        # Among sets of that size it is the heaviest.
        assert float(row[kept].sum()) == pytest.approx(float(row.sort(descending=True).values[:count].sum()))


def test_equal_energies_go_to_the_lowest_block() -> None:
    assert fewest_blocks(torch.full((1, 5), 0.2), 0.5).tolist() == [[True, True, True, False, False]]


def test_forced_blocks_come_first_and_count() -> None:
    energy = torch.tensor([[0.05, 0.6, 0.3, 0.05], [0.9, 0.05, 0.03, 0.02]])
    forced = torch.tensor([[False, False, False, True], [False, False, True, True]])
    assert fewest_blocks(energy, 0.64, forced).tolist() == [[False, True, False, True], [True, False, True, True]]
    assert torch.equal(fewest_blocks(energy, 0.0, forced), forced)


def test_a_block_stays_if_at_least_rho_of_the_prompts_keep_it() -> None:
    masks = torch.rand(10, 2, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    for rho in (0.1, 0.3, 0.5, 0.7, 1.0):
        votes = MaskVotes.of_shape(2, 5, 6)
        votes.add(masks[:4])
        votes.add(masks[4:])
        kept = votes.decide(rho)
        for h in range(2):
            for r in range(5):
                counts = [sum(bool(masks[p, h, r, c]) for p in range(10)) for c in range(6)]
                expected = [10 * rho <= count + 1e-9 for count in counts]
                if not any(expected):
                    expected[counts.index(max(counts))] = True
                assert kept[h, r].tolist() == expected


def test_an_emptied_row_keeps_its_most_voted_block_and_the_lowest_of_equal_ones() -> None:
    masks = torch.zeros(5, 1, 2, 4, dtype=torch.bool)
    masks[0, 0, 0, 1] = masks[1, 0, 0, 3] = masks[2, 0, 0, 3] = True
    votes = MaskVotes.of_shape(1, 2, 4)
    votes.add(masks)
    assert votes.decide().tolist() == [[[False, False, False, True], [True, False, False, False]]]


def test_votes_of_two_runs_add_up() -> None:
    masks = torch.rand(6, 2, 3, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    whole, first, second = (MaskVotes.of_shape(2, 3, 4) for _ in range(3))
    whole.add(masks)
    first.add(masks[:1])
    second.add(masks[1:])
    first.merge(second)
    assert first.prompts == 6 and torch.equal(first.counts, whole.counts)


def test_votes_that_do_not_fit_or_are_missing_are_refused() -> None:
    votes = MaskVotes.of_shape(2, 3, 4)
    with pytest.raises(ValueError, match="no prompt has voted"):
        votes.decide()
    with pytest.raises(ValueError, match="one grid at a time"):
        votes.add(torch.ones(1, 2, 3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="cannot join"):
        votes.merge(MaskVotes.of_shape(2, 3, 5))
    votes.add(torch.ones(1, 2, 3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="between 0 and 1"):
        votes.decide(1.5)
