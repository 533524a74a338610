"""Which steps a plan computes: so many, some at the start, the last, the others evenly between."""

from __future__ import annotations

import pytest

from draftattention.draftattn_core.run.step_cache import StepCacheSettings
from draftattention.draftattn_core.run.step_cache.spread import planned_steps


@pytest.mark.parametrize("steps", range(1, 60))
def test_a_plan_holds_the_first_the_last_and_even_steps_between(steps: int) -> None:
    for share in (0.01, 0.2, 1 / 3, 0.5, 0.77, 1.0):
        planned = sorted(planned_steps(steps, share))
        assert len(planned) == min(steps, max(4, round(share * steps)))
        assert planned[0] == 0 and planned[-1] == steps - 1
        gaps = [after - before for before, after in zip(planned, planned[1:])]
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("steps", range(1, 60))
@pytest.mark.parametrize("first", [0, 1, 2, 3, 8, 100])
def test_of_the_steps_a_plan_computes_the_first_are_as_many_as_asked_for_where_five_are_left_none_far_apart(
    steps: int, first: int
) -> None:
    for share in (0.01, 0.2, 0.3, 0.4, 0.5, 0.77, 1.0):
        planned = sorted(planned_steps(steps, share, first))
        count = min(steps, max(4, round(share * steps)))
        able = [n for n in range(2, first + 1) if count - n >= 5 and (steps - n) / (count - n) <= 4]
        head = min(count, max(able, default=1))
        assert len(planned) == count and planned[-1] == steps - 1
        assert planned[:head] == list(range(head))
        behind = planned[head - 1 :]
        gaps = [after - before for before, after in zip(behind, behind[1:])]
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_settings_say_how_many_of_a_plan_are_the_first_by_number_or_as_a_share() -> None:
    evenly = StepCacheSettings("spread", first=1, share=0.4)
    assert evenly.planned_steps(20) == planned_steps(20, 0.4) == {0, 3, 5, 8, 11, 14, 16, 19}
    three = StepCacheSettings("spread", first=3, share=0.4)
    as_share = StepCacheSettings("spread", first_share=0.15, share=0.4)
    assert three.planned_steps(20) == as_share.planned_steps(20) == {0, 1, 2, 5, 9, 12, 16, 19}
    assert sorted(as_share.planned_steps(50))[:9] == [0, 1, 2, 3, 4, 5, 6, 7, 11]
