"""What the frontier's page says of its targets: judged both ways, by one family, and only where both were measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.frontier.fronts import Point
from benchmarks.frontier.plan import Scenario
from benchmarks.frontier.report import Half, Table
from benchmarks.frontier.verdicts import verdicts
from benchmarks.verdict import Verdict
from draftattention.draftattn_core import TokenGrid

FEWER = "best sampler with fewer steps: PSNR + 2 dB and"


def point(family: str, work: float, psnr: float, **other: float) -> Point:
    return replace(Point(f"{family} {work}", family, work, psnr, psnr / 100, 0.0), **other)


def table(
    *points: Point, second: tuple[Point, ...] | None = None, rounds: tuple[int, int] = (1, 1), steps: int = 20
) -> Table:
    """Both halves measure `points`, unless the second has its own; each is judge of what the other chooses."""
    other = points if second is None else second
    halves = Half(rounds[0], points, other), Half(rounds[1], other, points)
    return Table(Scenario("calm", steps, (TokenGrid(2, 4, 6),), (0, 1)), (), None, points, halves)


def one(of: Table, words: str) -> Verdict:
    (found,) = (verdict for verdict in verdicts(of) if words in verdict.target)
    return found


class TestFewerSteps:
    DENSE = point("dense, Euler", 0.2, 20), point("dense, Euler", 0.3, 22)
    NEAR = point("a x b", 0.2, 80), point("a x b", 0.3, 90)

    def test_they_are_to_be_beaten_in_both_qualities_at_every_low_work(self) -> None:
        near, far = self.NEAR
        verdict = one(table(*self.DENSE, near, far), FEWER)
        assert verdict.met and "0.25" in verdict.found
        assert one(table(*self.DENSE, replace(near, psnr=21.0), far), FEWER).met is False
        assert one(table(*self.DENSE, replace(near, ssim=0.5), far), FEWER).met is False

    def test_one_family_does_both(self) -> None:
        sharp = [replace(p, family="a x b", ssim=0.3) for p in self.NEAR]
        alike = [replace(p, family="c x d", psnr=21.0) for p in self.NEAR]
        assert one(table(*self.DENSE, *sharp, *alike), FEWER).met is False

    def test_a_work_that_only_fewer_steps_reach_is_missed(self) -> None:
        verdict = one(table(*self.DENSE, self.NEAR[1]), FEWER)
        assert verdict.met is False and "0.2: not reached" in verdict.found


class TestHalves:
    def test_a_figure_is_the_mean_of_both_by_their_rounds_and_both_are_told(self) -> None:
        alone = point("dense, Euler", 0.2, 20)
        first, second = (alone, point("a x b", 0.2, 26)), (alone, point("a x b", 0.2, 20))
        verdict = one(table(*first, second=second, rounds=(2, 1)), "every single method in PSNR")
        assert "0.2: +4.0 (+6.0 / +0.0)" in verdict.found and verdict.met is None

    def test_what_one_half_does_not_reach_is_not_reached(self) -> None:
        alone = point("dense, Euler", 0.2, 20)
        verdict = one(table(alone, point("a x b", 0.2, 26), second=(alone,)), "every single method in PSNR")
        assert verdict.met is False and "0.2: not reached" in verdict.found

    def test_a_setting_is_chosen_by_one_half_and_judged_by_the_other(self) -> None:
        dense = point("dense, Euler", 0.2, 20)

        def tried(first: float, second: float) -> tuple[Point, ...]:
            return dense, point("a x b", 0.2, first), point("c x d", 0.2, second)

        verdict = one(table(*tried(30, 25), second=tried(21, 40)), "every single method in PSNR")
        assert "0.2: +3.0 (+5.0 / +1.0)" in verdict.found, "each half has the family that the other likes"

    def test_what_is_dearer_where_it_is_judged_is_held_against_dearer_rows(self) -> None:
        dense = point("dense, Euler", 0.2, 20), point("dense, Euler", 0.3, 26)
        cheap, dear = (replace(point("a x b", work, 30), method="the same") for work in (0.2, 0.3))
        weak = point("c x d", 0.2, 1)
        verdict = one(table(*dense, cheap, weak, second=(*dense, dear, weak)), "every single method in PSNR")
        # The second half knows the weak one alone at 0.2; the first has the other, which costs the second 0.3.
        assert "0.2: -7.5 (-19.0 / +4.0)" in verdict.found

    def test_a_composition_whose_lever_idles_is_never_chosen(self) -> None:
        dense = point("dense, Euler", 0.2, 20)
        idle, acting = replace(point("a x b", 0.2, 90), acts=False), point("c x d", 0.2, 25)
        assert "0.2: +5.0" in one(table(dense, idle, acting), "every single method in PSNR").found

    def test_above_the_dearest_composition_nothing_is_judged(self) -> None:
        single = point("spread", 0.2, 20), point("spread", 0.5, 60)
        verdict = one(table(*single, point("a x b", 0.2, 40)), "every single method in PSNR")
        assert verdict.met is None, "a target is met where all of it was measured"
        assert verdict.found.startswith("0.2: +20.0 (+20.0 / +20.0); none measured at 0.25, 0.3")
        behind = one(table(*single, point("a x b", 0.2, 10)), "every single method in PSNR")
        assert behind.met is False

    def test_one_seed_judges_nothing(self) -> None:
        lonely = replace(table(point("dense, Euler", 0.2, 20), point("a x b", 0.2, 26)), halves=())
        assert {one(lonely, words).met for words in (FEWER, "single method in PSNR", "converged path")} == {None}


class TestLines:
    def test_settings_of_two_families_are_never_mixed_between(self) -> None:
        single = point("spread", 0.2, 50)
        cheap, dear = point("a x b", 0.2, 40), point("c x d", 0.4, 80)
        verdict = one(table(single, cheap, dear), "every single method in PSNR")
        assert "0.3: -10.0" in verdict.found, "a line from one to the other would have 60 dB there"

    def test_a_further_family_never_lowers_what_was_found(self) -> None:
        single = point("spread", 0.2, 20)
        line = point("a x b", 0.2, 30), point("a x b", 0.4, 50)
        weak = point("c x d", 0.29, 31)
        before, after = (one(table(single, *some), "single method in PSNR") for some in (line, (*line, weak)))
        assert before.found == after.found and "0.3: +20.0" in before.found


class TestEasyCache:
    @pytest.mark.parametrize(("ours", "met"), [(26.0, True), (24.9, False)])
    def test_it_is_judged_at_equal_work(self, ours: float, met: bool) -> None:
        lines = [point("easycache", 0.2, 20), point("easycache", 0.6, 20), point("forecast", 0.2, ours)]
        assert one(table(*lines), "by threshold").met is met

    def test_where_it_was_not_measured_nothing_is_claimed(self) -> None:
        lines = [point("easycache", 0.2, 20), point("easycache", 0.3, 21), point("forecast", 0.2, 30)]
        verdict = one(table(*lines), "by threshold")
        assert verdict.met and "0.3: +9.0" in verdict.found and "0.5: EasyCache was not measured there" in verdict.found
        assert one(table(lines[2]), "by threshold").met is None

    def test_a_work_that_ours_does_not_reach_is_missed(self) -> None:
        lines = [point("easycache", 0.2, 20), point("easycache", 0.6, 20), point("forecast", 0.45, 40)]
        verdict = one(table(*lines), "by threshold")
        assert verdict.met is False and "0.4: not reached" in verdict.found


def test_between_samplers_the_converged_path_judges_where_it_was_made() -> None:
    dense, near = point("dense, dpmpp_2m", 0.3, 20), point("a x b", 0.3, 90)
    assert one(table(dense, near), "converged path").met is None
    dense = replace(dense, converged=30.0)
    assert one(table(dense, replace(near, converged=31.9)), "converged path").met is False
    assert one(table(dense, replace(near, converged=32.1)), "converged path").met
    # One half without that path leaves the other to judge.
    second = (replace(dense, converged=None), near)
    assert one(table(dense, replace(near, converged=32.1), second=second), "converged path").met


def test_at_few_steps_compositions_are_held_against_sparse_attention_in_both_qualities() -> None:
    sparse, near = point("sparse, ours", 0.5, 30), point("forecast x sparse, ours", 0.5, 31)
    found = table(sparse, replace(near, ssim=0.29), steps=4)
    assert one(found, "in PSNR").met
    assert one(found, "in SSIM").met is False
    dear = point("sparse, ours", 0.75, 40), point("forecast x sparse, ours", 0.75, 33)
    assert "-7.0" in one(table(sparse, near, *dear, steps=4), "in PSNR").found, "at every work that was measured"
    fewer = replace(near, family="dpmpp_2m x sparse, ours")
    assert one(table(sparse, fewer, steps=4), "in PSNR").met is None, "a sampler with fewer steps skips none"
