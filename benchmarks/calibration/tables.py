"""From raw units to the rows of calibration.json: means over what was measured, work and error of each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.calibration.captured import known_cells, unit
from benchmarks.calibration.evaluation import Score
from benchmarks.calibration.methods import ORACLE
from benchmarks.calibration.plan import Captured, Priors, Whole
from benchmarks.calibration.priors import OWN
from benchmarks.calibration.whole import methods
from benchmarks.calibration.whole import unit as whole_unit
from benchmarks.frontier.work import Ledger
from benchmarks.quality.raw import Record

At = tuple[int, int]
"""Seed and step of an evaluation."""


@dataclass(frozen=True)
class Figure:
    """One method in one evaluation.

    Attributes:
        work: mean over layers, tail included.
        rel_l2: of the attention outputs of all layers together; worst_layer: of the worst one.
        worst5: mean of the worst 5 % of rows, mean over layers.
    """

    work: float
    rel_l2: float
    worst5: float
    worst_layer: float

    @classmethod
    def of(cls, scores: Sequence[Score]) -> Figure:
        count = len(scores)
        squared, norms = sum(s[0] for s in scores), sum(s[1] for s in scores)
        return cls(
            sum(s[3] + s[4] for s in scores) / count,
            math.sqrt(squared / norms),
            sum(s[2] for s in scores) / count,
            max(math.sqrt(s[0] / s[1]) for s in scores),
        )


@dataclass
class Row:
    """A method at a budget: figures by evaluation."""

    method: str
    budget: float
    made_from: str
    figures: dict[At, Figure] = field(default_factory=dict)

    def mean(self, name: str, at: Sequence[At] | None = None) -> float:
        chosen = list(self.figures) if at is None else at
        return sum(float(getattr(self.figures[one], name)) for one in chosen) / len(chosen)


def captured_rows(scenarios: Sequence[Captured], records: Sequence[Record]) -> list[Row]:
    """Rows of all scenarios on one grid and path, in the order they were first measured."""
    known = known_cells(records)
    found: dict[str, Row] = {}
    first = scenarios[0]
    for seed in first.seeds:
        for _, step in first.pairs:
            for key, scores in known.get(str(unit(first, seed, step)), {}).items():
                if not scores:
                    continue
                method, budget, made_from = key.split(" | ")
                # Profiles of other runs under one name are rows of their own.
                row = found.setdefault(key, Row(method, float(budget), made_from))
                row.figures[seed, step] = Figure.of(scores)
    rows: dict[tuple[str, float], Row] = {}
    for row in found.values():
        # "Other prompts" rests on other runs for each seed.
        same = rows.setdefault((row.method, row.budget), Row(row.method, row.budget, row.made_from))
        same.figures.update(row.figures)
        if row.made_from not in same.made_from.split("; "):
            same.made_from += f"; {row.made_from}"
    return list(rows.values())


def work_at(rows: Sequence[Row], error: float, at: Sequence[At]) -> float | None:
    """Work at which one method's rows reach a mean error on some evaluations, linear between logarithms; None outside
    what was measured."""
    points = sorted((row.mean("rel_l2", at), row.mean("work", at)) for row in rows if set(at) <= set(row.figures))
    return _between(points, error)


def error_at(rows: Sequence[Row], work: float, at: Sequence[At]) -> float | None:
    """Mean error of one method's rows at a work; see `work_at`."""
    points = sorted((row.mean("work", at), row.mean("rel_l2", at)) for row in rows if set(at) <= set(row.figures))
    return _between(points, work)


def _between(points: Sequence[tuple[float, float]], x: float) -> float | None:
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        if x0 <= x <= x1:
            share = 0.0 if x1 == x0 else (math.log(x) - math.log(x0)) / (math.log(x1) - math.log(x0))
            return math.exp(math.log(y0) + share * (math.log(y1) - math.log(y0)))
    return None


@dataclass
class WholeRow:
    """A method at a mean density over the seeds in which every method was measured.

    Attributes:
        work: of the whole run beside the dense one.
        psnr, ssim: by seed.
        cpu: seconds of processor time by seed, of the runs in which it was measured.
    """

    method: str
    budget: float
    work: float
    psnr: dict[int, float]
    ssim: dict[int, float]
    cpu: dict[int, float] = field(default_factory=dict)


def whole_rows(scenario: Whole, records: Sequence[Record], share: float) -> list[WholeRow]:
    """Means over whole rounds, that all rows stand on the same.

    Args:
        share: of attention in a dense evaluation.
    """
    known = {str(record["unit"]): record for record in records if record["unit"][0] == "whole"}
    wanted = methods(scenario)
    # The dearer density is measured first: rounds count for each density by themselves.
    rows = []
    for mean in dict.fromkeys(mean for _, mean in reversed(wanted)):
        names = [name for name, other in wanted if other == mean]
        seeds = [
            seed for seed in scenario.seeds
            if all(str(whole_unit(scenario, seed, name, mean)) in known for name in names)
        ]  # fmt: skip
        if not seeds:
            continue
        for name in names:
            found = {seed: known[str(whole_unit(scenario, seed, name, mean))] for seed in seeds}
            works = [Ledger(**record["ledger"]).work(scenario.steps, share) for record in found.values()]
            psnr = {seed: record["scores"]["psnr_db"] for seed, record in found.items()}
            ssim = {seed: record["scores"]["ssim"] for seed, record in found.items()}
            cpu = {seed: record["cpu"] for seed, record in found.items() if "cpu" in record}
            rows.append(WholeRow(name, mean, sum(works) / len(works), psnr, ssim, cpu))
    return rows


def json_rows(scenario: Captured | Priors, rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows of calibration.json for captured evaluations."""
    return [
        {
            "part": "captured",
            "method": row.method,
            "budget": row.budget,
            "work": round(row.mean("work"), 4),
            "rel_l2": round(row.mean("rel_l2"), 5),
            "worst5": round(row.mean("worst5"), 5),
            "worst_layer": round(max(figure.worst_layer for figure in row.figures.values()), 5),
            "psnr_db": None,
            "ssim": None,
            "grid": str(scenario.grid),
            "steps": scenario.steps,
            "held_out": row.method not in (ORACLE, *OWN),
            "made_from": row.made_from,
            "evaluations": len(row.figures),
        }
        for row in rows
    ]


def json_whole_rows(scenario: Whole, rows: Sequence[WholeRow]) -> list[dict[str, object]]:
    """The same for whole runs."""
    return [
        {
            "part": "whole",
            "method": row.method,
            "budget": row.budget,
            "work": round(row.work, 4),
            "rel_l2": None,
            "worst5": None,
            "worst_layer": None,
            "psnr_db": round(sum(row.psnr.values()) / len(row.psnr), 3),
            "ssim": round(sum(row.ssim.values()) / len(row.ssim), 5),
            "grid": str(scenario.grid),
            "steps": scenario.steps,
            "held_out": row.method != ORACLE,
            "made_from": " ".join(run.key for run in scenario.calibration) if row.method.startswith("profile") else "",
            "evaluations": len(row.psnr),
        }
        for row in rows
    ]
