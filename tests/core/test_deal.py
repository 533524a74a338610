"""Heads dealt to ranks: all of them, equally many, and by their work."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from draftattention.draftattn_core.run.ranks.deal import deal, imbalance
from tests.core.need_tables import synthetic_needs


def test_the_fullest_head_goes_where_least_is_and_room_is_left():
    # 0.9 to rank 0, 0.8 and 0.4 to rank 1, which is then full; the rest to rank 0.
    assert deal((0.1, 0.8, 0.9, 0.4), 2) == (0, 2, 1, 3)


def test_heads_of_equal_work_are_dealt_in_turn():
    assert deal((0.5,) * 8, 2) == (0, 2, 4, 6, 1, 3, 5, 7)


@pytest.mark.parametrize("ranks", [1, 2, 4, 5, 8])
def test_every_head_is_dealt_once_and_every_rank_has_as_many(ranks):
    work = np.random.default_rng(0).random(40)
    order = deal(work, ranks)
    assert sorted(order) == list(range(40))
    hands = np.array(order).reshape(ranks, -1)
    assert all(list(hand) == sorted(hand) for hand in hands)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="12 heads cannot be dealt evenly to 5 ranks"):
        deal((0.1,) * 12, 5)


def test_the_deal_is_near_the_best_there_is():
    generator = np.random.default_rng(1)
    for _ in range(5):
        work = generator.beta(0.5, 1.5, 8)
        best = min(
            imbalance(work, 2, (*some, *(head for head in range(8) if head not in some)))
            for some in itertools.combinations(range(8), 4)
        )
        assert best <= imbalance(work, 2, deal(work, 2)) < 1.05 * best


def to_and_fro(work: Sequence[float], ranks: int) -> list[int]:
    """xDiT's deal: in order of falling work over the ranks and back."""
    falling = np.argsort(-np.asarray(work), kind="stable").reshape(-1, ranks)
    falling[1::2] = falling[1::2, ::-1]
    return [int(head) for head in falling.T.ravel()]


def slowest(budgets: list[Any], ranks: int, order_of: Callable[[Any], Sequence[int] | None]) -> float:
    """Time of attention over that of evenly shared work, all layers and buckets together: ranks wait in every layer."""
    return sum(imbalance(row, ranks, order_of(row)) * sum(row) for row in budgets) / sum(map(sum, budgets))


@pytest.mark.parametrize(
    ("ranks", "as_they_come", "back_and_forth", "dealt"),
    [(2, 1.11, 1.008, 1.001), (4, 1.29, 1.03, 1.01), (5, 1.38, 1.05, 1.01), (8, 1.59, 1.11, 1.03)],
)
def test_on_tables_like_wans_dealing_takes_nearly_all_of_the_waiting(ranks, as_they_come, back_and_forth, dealt):
    needs = synthetic_needs()
    edges = [int(50 * (i / 3) ** 1.5) for i in range(4)]
    # One budget per head for each of three buckets of steps: what a profile keeps.
    budgets = [row for start, end in itertools.pairwise(edges) for row in needs[start:end].max(0).tolist()]
    assert slowest(budgets, ranks, lambda row: None) == pytest.approx(as_they_come, abs=0.01)
    assert slowest(budgets, ranks, lambda row: to_and_fro(row, ranks)) == pytest.approx(back_and_forth, abs=0.01)
    assert slowest(budgets, ranks, lambda row: deal(row, ranks)) <= dealt
