"""The bench's files: two CSVs, one Markdown page, one plot."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.quality.captured import PeerCheck, Summary
from benchmarks.quality.end_to_end import Cell
from benchmarks.quality.plan import DENSE_FEWER
from benchmarks.quality.rows import Row
from benchmarks.quality.verdicts import beside_targets, leaders, verdicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Rows the plot shows; the tables show all.
PLOTTED = {
    "strips": "1-D strips, dropped",
    "sol": "Sol-Attn recipe",
    "paper": "DraftAttention (paper)",
    "drop_oracle": "3-D blocks, dropped, true top mass",
    "ours": "ours",
    "svg": "Sparse VideoGen",
    "adaspa": "AdaSpa",
    "ear": "SVG-EAR",
    "kitchen": "comfy-kitchen, our blocks and gain",
}

CAPTURED_COLUMNS = (
    *("row", "group", "label", "target", "calls"),
    *("executed", "tail_work", "relative_l2", "worst_5_percent", "recall"),
)
END_TO_END_COLUMNS = (
    *("grids", "row", "target", "steps", "warmup", "grid", "seed"),
    *("executed", "psnr_db", "ssim", "flicker", "seconds"),
)


@dataclass
class Results:
    """Everything a run measured.

    Attributes:
        name: `quick` or `full`; part of the file names.
        conditions: what the figures depend on, in words.
        twins: left-out rows, each with the name of the row that does the same.
        left_out: what was not measured and why.
    """

    name: str
    conditions: list[tuple[str, str]]
    rows: dict[str, Row]
    twins: dict[str, str]
    summaries: list[Summary]
    checks: list[PeerCheck]
    cells: list[Cell]
    left_out: list[str]


def complete(summaries: Iterable[Summary]) -> list[Summary]:
    """Those measured on all calls: a mean over fewer would stand beside other calls."""
    summaries = list(summaries)
    most = max((s.calls for s in summaries), default=0)
    return [s for s in summaries if s.calls == most]


def write(results: Results, out: Path) -> list[Path]:
    """Write all files into `out` (made if missing); returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    # Another process may write the same files just now: each is whole before it takes its place.
    with TemporaryDirectory(dir=out, prefix=".") as folder:
        paths = _write(results, Path(folder))
        return [path.replace(out / path.name) for path in paths]


def _write(results: Results, out: Path) -> list[Path]:
    paths = []
    if results.summaries:
        paths.append(_captured_csv(results, out / f"captured_{results.name}.csv"))
    if results.cells:
        paths.append(_end_to_end_csv(results, out / f"end_to_end_{results.name}.csv"))
    plot = _plot(results, out / f"quality_{results.name}.png")
    page = out / f"quality_{results.name}.md"
    page.write_text(markdown(results, plot.name), encoding="utf-8")
    return [*paths, plot, page]


def _captured_csv(results: Results, path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*CAPTURED_COLUMNS])
        for s in results.summaries:
            row = results.rows[s.row]
            figures = (s.executed, s.tail_work, s.relative_l2, s.worst, s.recall)
            writer.writerow([s.row, row.group, row.label, s.target, s.calls, *(f"{x:.5f}" for x in figures)])
    return path


def _end_to_end_csv(results: Results, path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*END_TO_END_COLUMNS])
        for cell in results.cells:
            for (grid, seed), s in cell.scores.items():
                figures = (s.executed, s.psnr, s.ssim, s.flicker, s.seconds)
                head = [cell.plan, cell.row, cell.target, cell.steps, cell.warmup, grid, seed]
                writer.writerow([*head, *(f"{x:.5f}" for x in figures)])
    return path


def markdown(results: Results, plot: str) -> str:
    """The page: conditions, targets, what leads, tables, what was left out."""
    summaries = complete(results.summaries)
    lines = [f"# Quality bench, {results.name} run", ""]
    lines += ["Written by `python run.py bench quality` from what its runs measured (raw/).", ""]
    lines += [f"- {key}: {value}" for key, value in results.conditions]
    lines += ["", f"![quality against executed density]({plot})", "", "## Targets", ""]
    lines += ["| target | figure | |", "|---|---|---|"]
    lines += [f"| {v.target} | {v.figure} | {v.word} |" for v in verdicts(summaries, results.cells)]
    lines += ["", "Beside the targets:", ""]
    lines += [f"- {line}" for line in beside_targets(summaries, results.cells)]
    if summaries:
        lines += ["", *_captured_section(results, summaries)]
    if results.cells:
        lines += ["", *_end_to_end_section(results)]
    lines += ["", "## Left out", ""]
    lines += [f"- {name}: does the same as `{twin}`" for name, twin in results.twins.items()]
    lines += [f"- {line}" for line in results.left_out]
    return "\n".join(lines) + "\n"


def _captured_section(results: Results, summaries: list[Summary]) -> list[str]:
    targets = sorted({s.target for s in summaries})
    cell = {(s.row, s.target): s for s in summaries}
    furthest = max(summaries, key=lambda s: abs(s.executed - s.target))
    lines = [
        f"## Captured calls ({summaries[0].calls} calls)",
        "",
        "Relative L2 of the output against dense / mean of the worst 5 % of rows / recall, at equal work: exact pairs "
        "plus tail are that share of dense attention "
        f"(furthest off: `{furthest.row}`, {furthest.executed:.4f} for {furthest.target:g}).",
        "",
        "| row | what | " + " | ".join(f"{t:.0%}" for t in targets) + " |",
        "|---|---|" + "---|" * len(targets),
    ]
    group = ""
    for name, row in results.rows.items():
        found = [cell.get((name, t)) for t in targets]
        if not any(found):
            continue
        if row.group != group:
            group = row.group
            lines.append(f"| **{group}** | |" + " |" * len(targets))
        texts = ["-" if s is None else f"{s.relative_l2:.3f} / {s.worst:.3f} / {s.recall:.2f}" for s in found]
        lines.append(f"| `{name}` | {row.label} | " + " | ".join(texts) + " |")
    lines += ["", "What leads in each group:", ""]
    lines += [f"- {line}" for line in leaders(summaries, results.rows)]
    if results.checks:
        worst = max(check.difference for check in results.checks)
        lines += [
            "",
            "The rows `peer_topk`, `peer_tau` and `kitchen` are comfy-kitchen's `sol_attn` by its formula; the "
            f"package's eager function ran beside it {len(results.checks)} times on these calls and differed by at "
            f"most {worst:.1e} (relative L2):",
            "",
        ]
        lines += [
            f"- `{c.row}` at {c.target:.0%}: the package itself has error {c.errors.relative_l2:.4f}, "
            f"formula and package differ by {c.difference:.1e}"
            for c in results.checks
        ]
    return lines


def _end_to_end_section(results: Results) -> list[str]:
    lines = [
        "## End to end",
        "",
        "Decoded pictures against the dense twin of the same seed, means over all rounds. `density` is that of the "
        "sparse steps, tail included; `steps` counts the twin's.",
    ]
    for plan in dict.fromkeys(cell.plan for cell in results.cells):
        cells = [cell for cell in results.cells if cell.plan == plan]
        rounds = ", ".join(f"{grid} seed {seed}" for grid, seed in cells[0].scores)
        lines += ["", f"### {plan} grids", "", f"{len(cells[0].scores)} rounds: {rounds}.", ""]
        lines += ["| row | density | steps | warm-up | PSNR dB | SSIM | flicker | seconds |", "|---" * 8 + "|"]
        for cell in sorted(cells, key=lambda c: (-c.steps, -c.warmup, c.target)):
            density = f"{cell.mean(lambda s: s.executed):.3f}" if cell.row in results.rows else f"as {cell.target:.0%}"
            lines.append(
                f"| `{cell.row}` | {density} | {cell.steps} | {cell.warmup:.0%} | {cell.mean(lambda s: s.psnr):.2f} | "
                f"{cell.mean(lambda s: s.ssim):.4f} | {cell.mean(lambda s: s.flicker):.4f} | "
                f"{cell.mean(lambda s: s.seconds):.1f} |"
            )
    return lines


def _plot(results: Results, path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, PercentFormatter, ScalarFormatter

    parts = [draw for draw, there in ((_plot_errors, results.summaries), (_plot_psnr, results.cells)) if there]
    figure, panels = plt.subplots(
        1, max(1, len(parts)), figsize=(5.6 * max(1, len(parts)), 4.2), layout="constrained", squeeze=False
    )
    for axes, draw in zip(panels[0], parts, strict=False):
        draw(results, axes)
        axes.grid(alpha=0.3, which="both")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if axes.get_yscale() == "log":
            ticks = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
            low, high = axes.get_ylim()
            axes.set_yticks([tick for tick in ticks if low <= tick <= high])
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
    drawn = {label: line for axes in panels[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if drawn:
        figure.legend([*drawn.values()], [*drawn], loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _plot_errors(results: Results, axes: Axes) -> None:
    for name, label in PLOTTED.items():
        points = sorted((s.executed, s.relative_l2) for s in complete(results.summaries) if s.row == name)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label, color=_color(name))
    axes.set(xlabel="executed density, tail included", ylabel="relative L2 error of attention", yscale="log")
    axes.set_title("captured calls")


def _plot_psnr(results: Results, axes: Axes) -> None:
    plan = max(results.cells, key=lambda c: len(c.scores)).plan
    for name, label in PLOTTED.items():
        for warmup, style, suffix in ((0.25, "-", ""), (0.0, ":", ", no warm-up")):
            points = sorted(
                (c.mean(lambda s: s.executed), c.mean(lambda s: s.psnr))
                for c in results.cells
                if (c.plan, c.row, c.steps, c.warmup) == (plan, name, 20, warmup)
            )
            if points:
                axes.plot(*zip(*points, strict=True), style, marker="o", color=_color(name), label=label + suffix)
    fewer = [c for c in results.cells if (c.plan, c.row, c.steps, c.warmup) == (plan, DENSE_FEWER, 20, 0.25)]
    if fewer:
        points = sorted((c.target, c.mean(lambda s: s.psnr)) for c in fewer)
        axes.plot(*zip(*points, strict=True), "x", color="black", label="dense, fewer steps at equal compute")
    axes.set(xlabel="executed density of the sparse steps, tail included", ylabel="PSNR against dense (dB)")
    axes.set_title(f"{plan} grids, 20 steps, 25 % dense warm-up unless said")


def _color(name: str) -> str:
    return f"C{list(PLOTTED).index(name)}"
