"""The plan: one policy per call, its heads numbered over the whole layer, or the reason why the call is dense."""

from __future__ import annotations

import pytest

from draftattention.draftattn_core.method.policy import Density, Policy, WrongHeadsError
from draftattention.draftattn_core.run.plan import Plan
from draftattention.draftattn_core.run.probe import HeadTails
from draftattention.draftattn_core.run.report import DenseReason, Position
from draftattention.draftattn_core.run.schedule import Schedule, constant
from tests.core.cases import PerHead

WEIGHTS = ((1.0, 0.5, 2.0, 1.5),) * 3


def test_a_dense_call_has_its_reason() -> None:
    plan = Plan(Policy(), Schedule(((0.0, 1.0), (0.5, 1.0), (0.5, 0.25)), dense_layers=(-1,)))
    assert plan.at(Position(0, 0.2, 0, 4), 2) is DenseReason.SCHEDULE
    assert plan.at(Position(9, 0.9, 3, 4), 2) is DenseReason.DENSE_LAYER
    assert plan.at(Position(9, 0.9, 0, 4), 2) == Policy(density=0.25)
    assert plan.starts_dense(0.0) and not plan.starts_dense(0.5)


def test_a_part_of_the_heads_reads_its_part_of_the_plan() -> None:
    tails, gains = ("none", "mean", "linear0", "linear1"), (0.1, 0.2, 0.3, 0.4)
    plan = Plan(Policy(tail=tails, tail_gain=gains), PerHead(((0.0, 0.2),), weights=WEIGHTS))
    whole = plan.at(Position(0, 0.0, 1, 3), 4)
    assert isinstance(whole, Policy) and whole.density == pytest.approx((0.2, 0.1, 0.4, 0.3))
    for first in (0, 2):
        part = plan.at(Position(0, 0.0, 1, 3, first_head=first, all_heads=4), 2)
        assert isinstance(part, Policy)
        assert part.density == whole.density[first : first + 2]
        assert part.tail == tails[first : first + 2] and part.tail_gain == gains[first : first + 2]


def test_a_plan_for_another_number_of_heads_is_refused() -> None:
    plan = Plan(Policy(), PerHead(((0.0, 0.2),), weights=WEIGHTS))
    with pytest.raises(WrongHeadsError, match="4 densities for 6 heads"):
        plan.at(Position(0, 0.0, 0, 3, first_head=2, all_heads=6), 2)
    with pytest.raises(WrongHeadsError, match="heads 3 to 4 of a layer of 4 heads"):
        plan.at(Position(0, 0.0, 0, 3, first_head=3, all_heads=4), 2)
    with pytest.raises(ValueError, match="tell how many heads"):
        Position(0, 0.0, 0, first_head=3)


def test_what_the_probe_found_counts_for_the_heads_it_was_found_for() -> None:
    plan = Plan(Policy(), constant(0.3))
    low, high = (Position(0, 0.0, 1, 3, first_head=first, all_heads=4) for first in (0, 2))
    found = HeadTails(("mean", "linear1"), (0.0, 0.5))
    plan.keep(high, 2, found)
    assert plan.found(low, 2) is None and plan.found(high, 2) is found
    assert plan.at(low, 2) == Policy(density=0.3)
    assert plan.at(high, 2) == found.put_into(Policy(density=0.3))
    assert plan.at(Position(5, 0.9, 0, 3), 4) == Policy(density=0.3)


def test_anything_that_knows_densities_can_stand_behind_a_plan() -> None:
    class ByLayer:
        def curve(self, progress: float) -> float:
            return 0.5

        def density(self, progress: float, layer: int, layers: int) -> Density | None:
            return None if layer == 0 else (0.1 * layer, 0.2 * layer)

        def is_dense_layer(self, layer: int, layers: int) -> bool:
            return False

    plan = Plan(Policy(), ByLayer())
    assert plan.at(Position(0, 0.0, 0), 2) is DenseReason.SCHEDULE
    assert plan.at(Position(0, 0.0, 2), 2) == Policy(density=(0.2, 0.4))
