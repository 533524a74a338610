"""The page: what was measured, one table and one plot a scenario, the verdicts, what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.frontier.fronts import at_work, by_family, envelope
from benchmarks.frontier.report import WORKS, Table
from benchmarks.frontier.tried import AGAINST
from benchmarks.frontier.verdicts import verdicts


def page(
    tables: Sequence[tuple[Table, Sequence[str]]],
    tried: Table | None,
    conditions: Sequence[str],
    missing: Sequence[str],
) -> str:
    """Markdown.

    Args:
        tables: with the names of their plots.
        tried: of the scenario "also tried", None where no round of it is whole.
        conditions: what holds for all of them, a sentence each.
        missing: what is not measured, a sentence each.
    """
    lines = [
        "# The frontier: quality at equal work",
        "",
        "Written by `python run.py bench frontier`. [docs/frontier.md](../../../docs/frontier.md) says how to read it.",
        "",
        *(f"- {sentence}" for sentence in conditions),
    ]
    for table, pictures in tables:
        lines += ["", f"## {_title(table)}", ""]
        lines += _one(table, pictures)
    if tried is not None:
        lines += ["", "## Also tried", "", *_also_tried(tried)]
    lines += ["", "## Not measured", "", *(f"- {sentence}" for sentence in missing or ("Nothing is missing.",)), ""]
    return "\n".join(lines)


def _title(table: Table) -> str:
    share = "" if table.share is None else f", attention reweighed to {table.share:.0%} of an evaluation"
    return f"{table.scenario.name}{share}"


def _one(table: Table, pictures: Sequence[str]) -> list[str]:
    rounds = ", ".join(f"({grid}, {seed})" for grid, seed in table.rounds)
    lines = [f"{len(table.rounds)} rounds (grid, seed): {rounds}.", ""]
    for picture in pictures:
        lines += [f"![Quality against work]({picture})", ""]
    acting = [point for point in table.points if point.acts]
    families = by_family(acting)
    for quality, unit, digits in (("psnr", "PSNR, dB", 1), ("ssim", "SSIM", 3)):
        lines += [f"{unit} at a given work, from each family's front:", ""]
        lines += ["| family | " + " | ".join(f"{work:g}" for work in WORKS) + " |", "|---" * (len(WORKS) + 1) + "|"]
        for family, members in families.items():
            cells = []
            for work in WORKS:
                value, best = at_work(members, work, quality), envelope(acting, work, quality)
                text = "-" if value is None else f"{value:.{digits}f}"
                cells.append(f"**{text}**" if best is not None and best[0] == family else text)
            lines.append(f"| {family} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["| target | met | found |", "|---|---|---|"]
    for verdict in verdicts(table):
        lines.append(f"| {verdict.target} | {verdict.word} | {verdict.found} |")
    lines += ["", "<details><summary>Every method</summary>", ""]
    path = f"PSNR to the converged path ({table.followed} rounds)"
    lines += [f"| method | work | PSNR dB | SSIM | flicker | {path} |", "|---|---|---|---|---|---|"]
    for point in sorted(table.points, key=lambda p: (p.family, p.work)):
        converged = "-" if point.converged is None else f"{point.converged:.1f}"
        idle = "" if point.acts else " (one lever idle)"
        lines.append(
            f"| {point.family}: {point.method}{idle} | {point.work:.3f} | {point.psnr:.1f} | {point.ssim:.3f} | "
            f"{point.flicker:.4f} | {converged} |"
        )
    return [*lines, "", "</details>"]


def _also_tried(table: Table) -> list[str]:
    """Every tried row beside the front of the family that it would improve or replace, at the row's own work."""
    rounds, families = ", ".join(f"({grid}, {seed})" for grid, seed in table.rounds), by_family(table.points)
    lines = [
        f"{len(table.rounds)} rounds (grid, seed) of {table.scenario.model}, {table.scenario.steps} steps: {rounds}. "
        "The last three columns are what another family has at the row's work, from its front in the same rounds.",
        "",
        "| row | work | PSNR dB | SSIM | beside | PSNR dB | SSIM |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, other in AGAINST.items():
        for point in sorted(families.get(family, ()), key=lambda p: p.work):
            psnr, ssim = (at_work(families[other], point.work, quality) for quality in ("psnr", "ssim"))
            theirs = "- | -" if psnr is None or ssim is None else f"{psnr:.1f} | {ssim:.3f}"
            lines.append(
                f"| {family}: {point.method} | {point.work:.3f} | {point.psnr:.1f} | {point.ssim:.3f} | {other} "
                f"| {theirs} |"
            )
    return lines
