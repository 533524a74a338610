"""What the figures say, computed: the targets met or missed, and which rows lead which comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.quality.captured import Summary
from benchmarks.quality.end_to_end import Cell, Scores
from benchmarks.quality.plan import DENSE_FEWER, MAIN
from benchmarks.quality.rows import Row

TARGET_DENSITIES = (0.10, 0.20, 0.30)
ERROR_LIMITS = {"sol": 0.4, "paper": 0.3}
PSNR_LEAD = 5.0
LONG, WARMUP = 20, 0.25


@dataclass(frozen=True)
class Verdict:
    """A target of the bench: `met` is None where the run measured too little to tell."""

    target: str
    figure: str
    met: bool | None

    @property
    def word(self) -> str:
        return "not measured" if self.met is None else "met" if self.met else "missed"


def _error_verdicts(summaries: Iterable[Summary]) -> list[Verdict]:
    error = {(s.row, s.target): s.relative_l2 for s in summaries}
    verdicts = []
    for density in TARGET_DENSITIES:
        for other, limit in ERROR_LIMITS.items():
            name = f"error of ours at {density:.0%} <= {limit} x {other}"
            mine, theirs = error.get(("ours", density)), error.get((other, density))
            if mine is None or theirs is None:
                verdicts.append(Verdict(name, "-", None))
                continue
            ratio = mine / theirs
            verdicts.append(Verdict(name, f"{mine:.3f} / {theirs:.3f} = {ratio:.2f}", ratio <= limit))
    return verdicts


def _psnr_verdicts(cells: Iterable[Cell]) -> list[Verdict]:
    found = {(c.plan, c.row, c.target, c.steps, c.warmup): c for c in cells}
    verdicts = []
    main = dict.fromkeys(key[0] for key in found if key[1] in MAIN and key[3:] == (LONG, WARMUP))
    for plan in main or ("no",):
        for density in TARGET_DENSITIES:
            mine = found.get((plan, "ours", density, LONG, WARMUP))
            for other in ERROR_LIMITS:
                theirs = found.get((plan, other, density, LONG, WARMUP))
                name = (
                    f"PSNR of ours at {density:.0%} >= {other} + {PSNR_LEAD:g} dB ({plan} grids, {WARMUP:.0%} warm-up)"
                )
                verdicts.append(_lead(name, mine, theirs, PSNR_LEAD))
            cold = found.get((plan, "ours", density, LONG, 0.0))
            warm = found.get((plan, "paper", density, LONG, WARMUP))
            name = f"PSNR of ours at {density:.0%} without warm-up > paper with {WARMUP:.0%} ({plan} grids)"
            verdicts.append(_lead(name, cold, warm, 0.0))
    return verdicts


def _lead(name: str, mine: Cell | None, theirs: Cell | None, wanted: float) -> Verdict:
    """Lead in dB over the rounds both have: mean, and the range of single rounds."""
    if mine is None or theirs is None or not (rounds := mine.scores.keys() & theirs.scores.keys()):
        return Verdict(name, "-", None)
    leads = [mine.scores[key].psnr - theirs.scores[key].psnr for key in rounds]
    lead = sum(leads) / len(leads)
    figure = (
        f"{mine.mean(psnr):.2f} - {theirs.mean(psnr):.2f} = {lead:+.2f} dB ({min(leads):+.1f} to {max(leads):+.1f})"
    )
    return Verdict(name, figure, lead >= wanted if wanted else lead > 0)


def psnr(scores: Scores) -> float:
    return scores.psnr


def verdicts(summaries: list[Summary], cells: list[Cell]) -> list[Verdict]:
    """Every target of the bench, in the order of its statement."""
    return _error_verdicts(summaries) + _psnr_verdicts(cells)


def beside_targets(summaries: list[Summary], cells: list[Cell]) -> list[str]:
    """Comparisons nobody set a target for but a reader should see: the strongest rivals of ours, one line each."""
    error = {(s.row, s.target): s.relative_l2 for s in summaries}
    lines = []
    for target in dict.fromkeys(s.target for s in summaries):
        mine, theirs = error.get(("ours", target)), error.get(("strips", target))
        if mine is not None and theirs is not None:
            ratio = mine / theirs
            lines.append(
                f"error of ours at {target:.0%} against strips dropped: {mine:.3f} / {theirs:.3f} = {ratio:.2f}"
            )
    found = {(c.plan, c.row, c.target, c.steps, c.warmup): c for c in cells}
    for (plan, row, target, steps, warmup), cell in found.items():
        mine_cell = found.get((plan, "ours", target, steps, warmup))
        if row in ("strips", DENSE_FEWER) and mine_cell is not None:
            where = f"{target:.0%}, {steps} steps, warm-up {warmup:.0%}, {plan} grids"
            verdict = _lead("", mine_cell, cell, 0.0)
            lines.append(f"PSNR of ours against `{row}` ({where}): {verdict.figure}")
    return lines


def leaders(summaries: list[Summary], rows: dict[str, Row]) -> list[str]:
    """Per group and target: the row with the smallest error beside the defaults, one line each."""
    by_cell = {(s.row, s.target): s for s in summaries}
    lines = []
    for group in dict.fromkeys(row.group for row in rows.values()):
        for target in dict.fromkeys(s.target for s in summaries):
            members = [s for s in summaries if s.target == target and rows[s.row].group == group]
            if not members:
                continue
            best = min(members, key=lambda s: s.relative_l2)
            steadiest = min(members, key=lambda s: s.worst)
            line = f"{group}, {target:.0%}: `{best.row}` {best.relative_l2:.4f}"
            line += f" (worst rows: `{steadiest.row}` {steadiest.worst:.3f})"
            ours = by_cell.get(("ours", target))
            if ours is not None:
                line += f"; defaults {ours.relative_l2:.4f} (worst rows {ours.worst:.3f})"
            lines.append(line)
    return lines
