"""`python -m benchmarks.quality.presets [--results DIR] [--name full]`: the densities of the schedule presets.

The rule: a preset may do as little work as keeps both the attention error of the node's own default (`auto_tail`) under
its limit and the pictures' PSNR against the dense twin over its limit, in the tables of a quality bench, read between
the measured targets. Its density is that work without the tail's, rounded up to the next 0.05.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "quality"
ERROR_ROW = "auto_tail"
PSNR_ROW, PSNR_STEPS, PSNR_WARMUP = "ours", 20, 0.25
STEP = 0.05
# Preset: largest relative L2 error of an attention call, smallest PSNR in dB of the decoded pictures.
LIMITS = {"quality": (0.035, 31.0), "balanced": (0.05, 27.0), "fast": (0.065, 25.0)}

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Choice:
    """What the tables ask of one preset.

    Attributes:
        for_error, for_psnr: work at which each limit is met, as a share of dense attention.
        tail_work: the tail's part of it.
        density: the preset's.
    """

    for_error: float
    for_psnr: float
    tail_work: float
    density: float


def read_error(path: Path) -> tuple[Curve, float]:
    """(work, relative L2) of the default tail in captured calls, and the tail's work; targets of all calls only."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["row"] == ERROR_ROW]
    most = max(int(row["calls"]) for row in rows)
    whole = [row for row in rows if int(row["calls"]) == most]
    curve = sorted((float(row["target"]), float(row["relative_l2"])) for row in whole)
    return curve, max(float(row["tail_work"]) for row in whole)


def read_psnr(path: Path) -> Curve:
    """(work, PSNR in dB) of long runs with warm-up, means over the rounds."""
    found: dict[float, list[float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            wanted = row["row"] == PSNR_ROW and row["grids"] == "small" and int(row["steps"]) == PSNR_STEPS
            if wanted and float(row["warmup"]) == PSNR_WARMUP:
                found.setdefault(float(row["target"]), []).append(float(row["psnr_db"]))
    return sorted((target, sum(values) / len(values)) for target, values in found.items())


def work_for(curve: Curve, limit: float, *, logarithmic: bool) -> float:
    """Work at which a curve reaches `limit`, on straight lines over log(work); beyond its ends the last line goes on.

    Args:
        curve: (work, value), at least two, work ascending.
        logarithmic: whether the value's logarithm is what is straight (errors) or the value itself (dB).
    """
    points = [(math.log(work), math.log(value) if logarithmic else value) for work, value in curve]
    goal = math.log(limit) if logarithmic else limit
    falling = points[-1][1] < points[0][1]
    last = len(points) - 2
    place = next((i for i in range(last + 1) if (points[i + 1][1] <= goal) == falling), last)
    (x0, y0), (x1, y1) = points[place], points[place + 1]
    return math.exp(x0 + (x1 - x0) * (goal - y0) / (y1 - y0))


def choose(results: Path = RESULTS, name: str = "full") -> dict[str, Choice]:
    """The rule applied to captured_NAME.csv and end_to_end_NAME.csv."""
    error, tail_work = read_error(results / f"captured_{name}.csv")
    psnr = read_psnr(results / f"end_to_end_{name}.csv")
    choices = {}
    for preset, (most_error, least_psnr) in LIMITS.items():
        for_error = work_for(error, most_error, logarithmic=True)
        for_psnr = work_for(psnr, least_psnr, logarithmic=False)
        exact = max(for_error, for_psnr) - tail_work
        density = round(math.ceil(round(exact / STEP, 6)) * STEP, 2)
        choices[preset] = Choice(for_error, for_psnr, tail_work, density)
    return choices


def table(choices: dict[str, Choice]) -> str:
    """Markdown."""
    lines = [
        "| preset | error at most | met at work | PSNR at least | met at work | minus the tail | density |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset, choice in choices.items():
        error, psnr = LIMITS[preset]
        exact = max(choice.for_error, choice.for_psnr) - choice.tail_work
        lines.append(
            f"| {preset} | {error:.3f} | {choice.for_error:.1%} | {psnr:.0f} dB | {choice.for_psnr:.1%} "
            f"| {exact:.1%} | {choice.density:.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.presets", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the bench's CSV files")
    parser.add_argument("--name", default="full", help="quick or full")
    options = parser.parse_args(argv)
    print(table(choose(options.results, options.name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
