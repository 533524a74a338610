"""What a profile of one seed set saves on another: the work that one density for all needs for the same quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.calibration.methods import PROFILE, UNIFORM
from benchmarks.calibration.plan import CalibrationRun, Captured, Whole
from benchmarks.calibration.tables import Row, WholeRow
from benchmarks.calibration.verdicts import of_method, ratios
from benchmarks.calibration.whole import DENSE


@dataclass(frozen=True)
class Saving:
    """A profile at one work.

    Attributes:
        grid: of the judged runs. made_on, judged_on: seeds.
        quality: what is equal, in words.
        work: share of dense attention, in whole runs of the whole dense run.
        needed: what one density for all needs for the same quality; None beyond what was measured, `beyond` then says
            on which side.
    """

    grid: str
    made_on: tuple[int, ...]
    judged_on: tuple[int, ...]
    quality: str
    work: float
    needed: float | None
    beyond: str = ""


def captured_savings(scenario: Captured, rows: Sequence[Row]) -> list[Saving]:
    """At equal error of captured evaluations."""
    judged = tuple(sorted({seed for row in of_method(rows, PROFILE) for seed, _ in row.figures}))
    return [
        Saving(
            str(scenario.grid), _seeds(scenario.calibration), judged, "attention error", work,
            None if ratio is None else ratio * work,
        )
        for work, ratio in sorted(ratios(rows, PROFILE).items())
    ]  # fmt: skip


def whole_savings(scenario: Whole, rows: Sequence[WholeRow]) -> list[Saving]:
    """At equal PSNR of whole runs, on the seeds in which everything was measured."""
    if scenario.timed:
        return []
    uniform = [row for row in rows if row.method == UNIFORM]
    found = []
    for row in rows:
        seeds = tuple(sorted(set(row.psnr).intersection(*(one.psnr for one in uniform))))
        if row.method != PROFILE or not seeds:
            continue
        quality = _mean(row, seeds)
        points = sorted((one.work, _mean(one, seeds)) for one in uniform)
        needed = _work_at(points, quality)
        side = f"more than {points[-1][0]:.3f}" if quality > points[-1][1] else f"less than {points[0][0]:.3f}"
        beyond = side if needed is None else ""
        made_on = _seeds(scenario.calibration)
        found.append(Saving(str(scenario.grid), made_on, seeds, "PSNR of the video", row.work, needed, beyond))
    return found


def times(scenario: Whole, rows: Sequence[WholeRow]) -> list[str]:
    """One sentence on the processor time of a timed run with a profile, beside dense and one density for all."""
    of = {row.method: row for row in rows if row.cpu}
    if not scenario.timed or not {DENSE, UNIFORM, PROFILE} <= set(of):
        return []
    seconds = {name: sum(row.cpu.values()) / len(row.cpu) for name, row in of.items()}
    made, judged = (", ".join(map(str, seeds)) for seeds in (_seeds(scenario.calibration), of[PROFILE].psnr))
    quality = {name: _mean(of[name], list(of[name].psnr)) for name in (UNIFORM, PROFILE)}
    return [
        f"Processor time of a whole run of {scenario.steps} steps at {scenario.grid}, seed {judged}, one thread: dense "
        f"{seconds[DENSE]:.1f} s; mean density {of[PROFILE].budget:g} by a profile of seeds {made} "
        f"{seconds[PROFILE]:.1f} s ({seconds[DENSE] / seconds[PROFILE]:.2f} times as fast, {quality[PROFILE]:.1f} dB "
        f"from the dense video), for all heads alike {seconds[UNIFORM]:.1f} s ({quality[UNIFORM]:.1f} dB).",
        "",
    ]


def savings_section(savings: Sequence[Saving], timed: Sequence[str] = ()) -> list[str]:
    if not savings:
        return []
    lines = [
        "## A profile of one seed set on another",
        "",
        "The work that one density for all needs for the quality that the profile has, between the densities that were "
        "measured (errors and works in logarithms, PSNR and work linearly). Captured: work of attention; videos: of "
        "the whole run, dense steps at the start included.",
        "",
        "| grid | profile of seeds | judged on seeds | equal | work with the profile | one density for all | saved |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in savings:
        made, judged = (", ".join(map(str, seeds)) for seeds in (one.made_on, one.judged_on))
        needed, saved = one.beyond or "beyond what was measured", "-"
        if one.needed is not None:
            needed, saved = f"{one.needed:.3f}", f"{1 - one.work / one.needed:.0%}"
        lines.append(f"| {one.grid} | {made} | {judged} | {one.quality} | {one.work:.3f} | {needed} | {saved} |")
    return [*lines, "", *timed]


def _seeds(runs: Sequence[CalibrationRun]) -> tuple[int, ...]:
    return tuple(run.seed for run in runs)


def _mean(row: WholeRow, seeds: Sequence[int]) -> float:
    return sum(row.psnr[seed] for seed in seeds) / len(seeds)


def _work_at(points: Sequence[tuple[float, float]], quality: float) -> float | None:
    """Work at which a line through points (work, quality) reaches a quality; None outside of them."""
    for (w0, q0), (w1, q1) in zip(points[:-1], points[1:], strict=True):
        if q0 <= quality <= q1:
            return w0 if q1 == q0 else w0 + (quality - q0) / (q1 - q0) * (w1 - w0)
    return None
