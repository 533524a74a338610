"""The rule that makes the node's speeds of the frontier: what each is, is read off the committed rows.

Candidates are the plans of evaluations, dense or with budgets, that were measured in every scenario of 20 steps, with
the computed steps at their start that a speed has (`run.speed.FIRST_SHARE`; `starts` says why).
Each is worth its mean SSIM and PSNR over the scenarios (checkpoints and sizes, one vote each) and costs its mean work.
On the front of these, where a point is better in both than every cheaper one, `max` is the cheapest point, `quality`
the best one of at most half the dense work, `fast` and `balanced` are those closest to one and two thirds of the way
between their works. `auto` goes by the worst scenario alone: one easy model flatters whatever skips.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftattention.draftattn_core.run.speed import Speed
from draftattention.draftattn_core.run.step_cache.spread import planned_steps

RESULTS = Path(__file__).parents[1] / "results" / "frontier" / "frontier.json"
FAMILY = "spread x sparse, ours with budgets"
FAMILIES = (FAMILY, "spread")
STEPS = 20
MOST_WORK = 0.5
# Of the dense video's structure, what `auto` keeps on the worst checkpoint and size.
LEAST_SSIM = 0.975
# How the names of the families' methods say their settings.
_SETTINGS = re.compile(
    r"(?:budgets (?P<density>[\d.]+) warm \d+, )?spread (?P<share>[\d.]+)(?: first (?P<first>\d+))?$"
)


@dataclass(frozen=True)
class Candidate:
    """A plan.

    Attributes:
        density, share: its settings; a density of 1 is dense.
        work: mean over the scenarios.
        ssim: likewise; worst: the least of the scenarios.
        psnr: likewise, dB.
        first: of the computed steps, how many are the first ones.
        method: its name.
    """

    density: float
    share: float
    work: float
    ssim: float
    worst: float
    psnr: float
    first: int = 1
    method: str = ""

    @property
    def density_word(self) -> str:
        return "dense" if self.density >= 1.0 else f"{self.density:g}"


def load(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of the committed frontier."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def candidates(rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Those whose steps are planned as a speed plans them."""
    return [
        one
        for one in measured(rows)
        if planned_steps(STEPS, one.share, one.first) == Speed(one.density, one.share).skip().planned_steps(STEPS)
    ]


def starts(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[float, float], tuple[Candidate, Candidate]]:
    """(density, share) -> what was measured of it with steps spread evenly from the first on, and with some computed at
    the start, where both were; of sparse ones."""
    sparse = [one for one in measured(rows) if one.density < 1.0]
    evenly = {(one.density, one.share): one for one in sparse if one.first == 1}
    after = {(one.density, one.share): one for one in sparse if one.first > 1}
    return {pair: (evenly[pair], after[pair]) for pair in evenly if pair in after}


def measured(rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Those measured in every scenario that has the families; a scenario is a checkpoint at a size."""
    found: dict[str, dict[tuple[str, str], list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row["family"] in FAMILIES and row["steps"] == STEPS and row["acts"]:
            found.setdefault(row["method"], {}).setdefault((row["model"], row["size"]), []).append(row)
    scenarios = {scenario for by_scenario in found.values() for scenario in by_scenario}
    made = []
    for method, by_scenario in found.items():
        settings = _SETTINGS.search(method)
        if settings is None or set(by_scenario) != scenarios:
            continue
        means = [
            {name: sum(row[name] for row in some) / len(some) for name in ("work", "ssim", "psnr_db")}
            for some in by_scenario.values()
        ]
        made.append(
            Candidate(
                float(settings["density"] or 1.0),
                float(settings["share"]),
                sum(mean["work"] for mean in means) / len(means),
                sum(mean["ssim"] for mean in means) / len(means),
                min(mean["ssim"] for mean in means),
                sum(mean["psnr_db"] for mean in means) / len(means),
                int(settings["first"] or 1),
                method,
            )
        )
    return made


def choose(found: Sequence[Candidate]) -> dict[str, Candidate]:
    """Speed -> plan, from the most faithful to the fastest.

    Raises:
        ValueError: if the front has too few points for four speeds.
    """
    front: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: (c.work, -c.ssim)):
        better = not front or (candidate.ssim > front[-1].ssim and candidate.psnr > front[-1].psnr)
        if candidate.work <= MOST_WORK and better:
            front.append(candidate)
    if len(front) < 4:
        raise ValueError(f"four speeds need four points on the front, this one has {len(front)}: measure more pairs")
    first, last = front[0], front[-1]
    between = front[1:-1]
    wanted = {
        name: first.work + part * (last.work - first.work) for name, part in (("balanced", 2 / 3), ("fast", 1 / 3))
    }
    balanced = min(between[1:], key=lambda c: abs(c.work - wanted["balanced"]))
    fast = min((c for c in between if c.work < balanced.work), key=lambda c: abs(c.work - wanted["fast"]))
    return {"quality": last, "balanced": balanced, "fast": fast, "max": first}


def auto(chosen: Mapping[str, Candidate]) -> str:
    """The speed that `auto` is: the cheapest that keeps `LEAST_SSIM` in its worst scenario.

    Where none does, it is the one whose worst scenario is the best, the cheaper of equals.
    """
    keeping = [name for name, c in chosen.items() if c.worst >= LEAST_SSIM]
    if keeping:
        return min(keeping, key=lambda name: chosen[name].work)
    return max(chosen, key=lambda name: (chosen[name].worst, -chosen[name].work))


def table(chosen: Mapping[str, Candidate]) -> str:
    """As docs/frontier.md shows it."""
    lines = [
        "| speed | density | share of steps | work | SSIM | worst scenario | PSNR |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, c in chosen.items():
        settings = f"| `{name}` | {c.density_word} | {c.share:g} "
        lines.append(f"{settings}| {c.work:.2f} | {c.ssim:.3f} | {c.worst:.3f} | {c.psnr:.1f} dB |")
    return "\n".join(lines)
