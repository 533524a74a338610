"""The speeds of DraftAttention Sparse are what their rule makes of the committed frontier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.frontier.fronts import Point, envelope
from benchmarks.frontier.speeds import FAMILY, Candidate, candidates, choose, load, table
from draftattention.draftattn_core.run.speed import SPEEDS

PAGE = Path(__file__).parents[2] / "docs" / "frontier.md"


def row(work: float, ssim: float, *, model: str = "calm", size: str = "small", density: float = 0.25, **other) -> dict:
    method = f"euler 20, budgets {density:g} warm 1, spread 0.4"
    base = {"family": FAMILY, "steps": 20, "acts": True, "psnr_db": 100 * ssim}
    return base | {"method": method, "model": model, "size": size, "work": work, "ssim": ssim} | other


def test_the_speeds_follow_from_the_frontier() -> None:
    made = {name: (c.density, c.share) for name, c in choose(candidates(load())).items()}
    assert made == {name: (speed.density, speed.share) for name, speed in SPEEDS.items()}


def test_the_docs_show_the_rule_as_it_was_applied() -> None:
    assert table(choose(candidates(load()))) in PAGE.read_text(encoding="utf-8")


def test_what_auto_takes_is_closer_than_fewer_steps_at_its_work_on_every_checkpoint_and_size() -> None:
    rows, compared = load(), 0
    for name in ("quality", "balanced"):
        speed = SPEEDS[name]
        words = f"budgets {speed.density:g} warm 1, spread {speed.share:g}"
        for model, size in {(row["model"], row["size"]) for row in rows if row["family"] == FAMILY}:
            here = [row for row in rows if (row["model"], row["size"], row["steps"]) == (model, size, 20)]
            points = [
                Point(row["method"], row["family"], row["work"], row["psnr_db"], row["ssim"], row["flicker"])
                for row in means(here)
            ]
            (ours,) = [point for point in points if point.method.endswith(words)]
            dense = [point for point in points if point.family.startswith("dense")]
            # Where no number of steps is that cheap, the cheapest that was measured has the advantage of more work.
            best = envelope(dense, max(ours.work, min(point.work for point in dense)), "ssim")
            assert best is not None and ours.ssim > best[1], (name, model, size)
            compared += 1
    assert compared == 6


def means(rows: list[dict]) -> list[dict]:
    """One row a method."""
    by_method: dict[tuple[str, str], list[dict]] = {}
    for found in rows:
        by_method.setdefault((found["family"], found["method"]), []).append(found)
    names = ("work", "psnr_db", "ssim", "flicker")
    return [some[0] | {n: sum(r[n] for r in some) / len(some) for n in names} for some in by_method.values()]


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
