"""The speeds of DraftAttention Sparse are what their rule makes of the committed frontier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.frontier.speeds import FAMILY, LEAST_SSIM, Candidate, auto, candidates, choose, load, starts, table
from benchmarks.frontier.summary import (
    SCENARIOS,
    draw,
    families_table,
    fewer_steps,
    points_of,
    speed_point,
    speeds_table,
)
from draftattention.draftattn_core.run.speed import SPEEDS, speed_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "frontier.md"


def row(work: float, ssim: float, *, model: str = "calm", size: str = "small", density: float = 0.25, **other) -> dict:
    method = f"euler 20, budgets {density:g} warm 1, spread 0.4 first 3"
    base = {"family": FAMILY, "steps": 20, "acts": True, "psnr_db": 100 * ssim}
    return base | {"method": method, "model": model, "size": size, "work": work, "ssim": ssim} | other


def test_the_speeds_follow_from_the_frontier() -> None:
    made = {name: (c.density, c.share) for name, c in choose(candidates(load())).items()}
    assert made == {name: (speed.density, speed.share) for name, speed in SPEEDS.items()}


def test_the_steps_that_a_speed_computes_at_the_start_pay_where_they_are_needed_and_cost_less_elsewhere() -> None:
    both = starts(load())
    assert len(both) >= 4
    gains = [(after.worst - evenly.worst, after.ssim - evenly.ssim) for evenly, after in both.values()]
    worst, mean = (sum(gain) / len(gain) for gain in zip(*gains, strict=True))
    assert worst > 0.0 and mean > 0.0, gains


def test_only_plans_that_a_speed_makes_are_candidates() -> None:
    plain = [row(0.2, 0.9, method=f"euler 20, budgets 0.4 warm 1, spread {share}") for share in (0.25, 0.4)]
    after = row(0.2, 0.9, method="euler 20, budgets 0.4 warm 1, spread 0.4 first 3")
    made = [(one.share, one.first) for one in candidates([*plain, after])]
    assert made == [(0.25, 1), (0.4, 3)], "a quarter of 20 steps leaves none for the start"
    assert list(starts([*plain, after])) == [(0.4, 0.4)]


def test_the_docs_show_the_rule_as_it_was_applied() -> None:
    assert table(choose(candidates(load()))) in PAGE.read_text(encoding="utf-8")


def test_auto_follows_from_the_worst_scenario() -> None:
    assert speed_of("auto") == SPEEDS[auto(choose(candidates(load())))]


def test_auto_is_the_cheapest_speed_that_keeps_the_video_in_its_worst_scenario() -> None:
    def made(**worst: float) -> dict[str, Candidate]:
        works = {"quality": 0.4, "balanced": 0.3, "fast": 0.25, "max": 0.2}
        return {name: Candidate(0.4, 0.5, works[name], 0.99, value, 40.0) for name, value in worst.items()}

    assert auto(made(quality=0.99, balanced=LEAST_SSIM, fast=LEAST_SSIM - 0.001, max=0.9)) == "balanced"
    assert auto(made(quality=0.99, balanced=0.98, fast=0.98, max=0.9)) == "fast"
    assert auto(made(quality=0.9, balanced=0.8, fast=0.7, max=0.6)) == "quality"
    assert auto(made(quality=0.9, balanced=0.8, fast=0.95, max=0.95)) == "max", "none keeps it: the best of the worst"


def test_what_auto_takes_is_closer_than_fewer_steps_at_its_work_on_every_checkpoint_and_size() -> None:
    rows, chosen = load(), choose(candidates(load()))
    for name in {"quality", auto(chosen)}:
        for model, size in SCENARIOS:
            points = points_of(rows, model, size)
            ours = speed_point(points, chosen[name])
            for quality in ("psnr", "ssim"):
                _, best = fewer_steps(points, ours.work, quality)
                assert getattr(ours, quality) > best, (name, model, size, quality)
    assert {(row["model"], row["size"]) for row in rows if row["family"] == FAMILY and row["steps"] == 20} == set(
        SCENARIOS
    )


def test_the_readme_shows_the_frontier_in_short() -> None:
    text, rows = (ROOT / "README.md").read_text(encoding="utf-8"), load()
    assert speeds_table(rows, choose(candidates(rows))) in text and families_table(rows) in text


@pytest.mark.parametrize("models", [("calm", "lively"), ("calm",)])
def test_the_picture_names_every_speed_in_every_scenario_that_was_measured(models: tuple[str, ...]) -> None:
    pytest.importorskip("matplotlib")
    rows = [row for row in load() if row["model"] in models and row["size"] == "small"]
    chosen = choose(candidates(rows))
    axes = draw(rows, chosen).axes
    assert len(axes) == 2 * len(models)
    assert all([text.get_text() for text in axis.texts] == list(chosen) for axis in axes)


def test_scenarios_have_one_vote_each_and_the_worst_is_told() -> None:
    rows = [row(0.2, 0.9), row(0.4, 0.8), row(0.5, 0.6, model="lively"), row(0.6, 0.99, density=0.4)]
    assert [(c.density, c.work, c.ssim, c.worst) for c in candidates(rows)] == [
        (0.25, pytest.approx((0.3 + 0.5) / 2), pytest.approx((0.85 + 0.6) / 2), pytest.approx(0.6))
    ], "one scenario lacks the other density"


@pytest.mark.parametrize("other", [{"steps": 8}, {"acts": False}, {"family": "spread x sparse, ours"}])
def test_other_rows_are_no_candidates(other: dict) -> None:
    assert not candidates([row(0.2, 0.9, **other)])


def test_the_ends_of_the_front_and_the_thirds_between_are_taken() -> None:
    def made(*points: tuple[float, float]) -> list[Candidate]:
        return [Candidate(work, ssim, work, ssim, ssim, 100 * ssim) for work, ssim in points]

    behind, dear = (0.31, 0.5), (0.6, 1.0)
    found = choose(made((0.2, 0.6), (0.29, 0.7), (0.33, 0.75), (0.42, 0.8), (0.5, 0.9), behind, dear))
    assert {name: c.work for name, c in found.items()} == {"quality": 0.5, "balanced": 0.42, "fast": 0.29, "max": 0.2}
    with pytest.raises(ValueError, match="measure more pairs"):
        choose(made((0.2, 0.6), (0.3, 0.7), (0.4, 0.8)))


def test_a_point_that_a_cheaper_one_beats_in_either_quality_is_on_no_front() -> None:
    line = [Candidate(x, x, x, x, x, 100 * x) for x in (0.2, 0.26, 0.42, 0.5)]
    # Where a third of the way between the ends is.
    between = Candidate(0.3, 0.3, 0.3, 0.3, 0.3, 30.0)
    assert choose([*line, between])["fast"] == between
    for worse in (replace(between, psnr=25.0), replace(between, ssim=0.25)):
        assert choose([*line, worse]) == choose(line)
