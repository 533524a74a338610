"""What the figures say, computed: the targets met or missed, and which rows lead which comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .captured import Summary
from .end_to_end import Cell
from .rows import Row

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
    found = {(c.plan, c.row, c.target, c.steps, c.warmup): c.mean(lambda s: s.psnr) for c in cells}
    verdicts = []
    for plan in dict.fromkeys(key[0] for key in found) or ("",):
        for density in TARGET_DENSITIES:
            mine = found.get((plan, "ours", density, LONG, WARMUP))
            cold = found.get((plan, "ours", density, LONG, 0.0))
            for other in ERROR_LIMITS:
                where = f"{plan} grids, {WARMUP:.0%} warm-up"
                name = f"PSNR of ours at {density:.0%} >= {other} + {PSNR_LEAD:g} dB ({where})"
                theirs = found.get((plan, other, density, LONG, WARMUP))
                verdicts.append(_lead(name, mine, theirs, PSNR_LEAD))
            name = f"PSNR of ours at {density:.0%} without warm-up > paper with {WARMUP:.0%} ({plan} grids)"
            verdicts.append(_lead(name, cold, found.get((plan, "paper", density, LONG, WARMUP)), 0.0))
    return verdicts


def _lead(name: str, mine: float | None, theirs: float | None, wanted: float) -> Verdict:
    if mine is None or theirs is None:
        return Verdict(name, "-", None)
    lead = mine - theirs
    return Verdict(name, f"{mine:.2f} - {theirs:.2f} = {lead:+.2f} dB", lead >= wanted if wanted else lead > 0)


def verdicts(summaries: list[Summary], cells: list[Cell]) -> list[Verdict]:
    """Every target of the bench, in the order of its statement."""
    return _error_verdicts(summaries) + _psnr_verdicts(cells)


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
