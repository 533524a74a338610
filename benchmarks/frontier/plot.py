"""One picture for a scenario on one grid: quality against work, a line for each family, the envelope marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.frontier.fronts import at_work, by_family, envelope, front
from benchmarks.frontier.report import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Lines of one kind are near in colour: dense grey, skipping blue, sparse orange, compositions red or violet (planned).
_COLOURS = {
    "dense, Euler": ("#555555", "-"),
    "dense, dpmpp_2m": ("#888888", "--"),
    "dense, uni_pc": ("#aaaaaa", ":"),
    "easycache": ("#7fb2e5", "--"),
    "ComfyUI's EasyCache": ("#3fa7a0", "-."),
    "forecast": ("#1f6fc4", "-"),
    "spread": ("#0b2f66", "-"),
    "sparse, ours": ("#e58a1f", "-"),
    "sparse, ours with budgets": ("#8a4b00", "-"),
    "sparse, paper": ("#f0b96f", "--"),
    "sparse, sol": ("#c9a400", ":"),
    "easycache x sparse, ours": ("#d96a6a", "--"),
    "easycache x sparse, ours with budgets": ("#a33d3d", ":"),
    "easycache x sparse, paper": ("#e0a890", "--"),
    "easycache x sparse, sol": ("#b58f7f", ":"),
    "dpmpp_2m x sparse, ours with budgets": ("#2f8f4e", "-."),
    "forecast x sparse, ours": ("#c01818", "-"),
    "forecast x sparse, ours with budgets": ("#6e0b0b", "-"),
    "forecast x sparse, paper": ("#d8a0b0", "--"),
    "forecast x sparse, sol": ("#c060a0", ":"),
    "spread x sparse, ours": ("#b07be0", "--"),
    "spread x sparse, ours with budgets": ("#7a1fd0", "-"),
}
# Works shown: all that a run of many steps may cost, or where short runs lie.
_MANY, _SHORT = (0.12, 0.7), (0.4, 0.95)
_FROM_STEPS = 8
_STEP = 0.005
# The least 1 - SSIM that is drawn.
_FLOOR = 1e-4


def limits(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """Limits of an axis that shows `values` with a twentieth of their range to spare on both sides.

    Args:
        log: of an axis with a logarithmic scale; the values are positive.
    """
    scaled = [math.log(value) for value in values] if log else list(values)
    spare = 0.05 * (max(scaled) - min(scaled)) or 0.5
    low, high = min(scaled) - spare, max(scaled) + spare
    return (math.exp(low), math.exp(high)) if log else (low, high)


def plot(table: Table, path: Path) -> None:
    """Write the picture."""
    draw(table).savefig(path, dpi=100)


def draw(table: Table) -> Figure:
    """PSNR above, 1 - SSIM below.

    Lines go from point to point as the tables are read between them, so that none passes the envelope.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True)
    points = [point for point in table.points if point.acts]
    window = _MANY if table.scenario.steps >= _FROM_STEPS else _SHORT
    works = [window[0] + _STEP * i for i in range(round((window[1] - window[0]) / _STEP) + 1)]
    for axis, quality in zip(axes, ("psnr", "ssim")):
        shown: Callable[[float], float] = (lambda v: v) if quality == "psnr" else (lambda v: max(_FLOOR, 1 - v))
        best = [(work, found[1]) for work in works if (found := envelope(points, work, quality)) is not None]
        axis.plot(*zip(*[(w, shown(v)) for w, v in best]), color="#ffe08a", linewidth=7, zorder=0, label="envelope")
        for family, members in by_family(points).items():
            colour, style = _COLOURS.get(family, ("#000000", "-."))
            line = front(members, quality)
            between = [work for work in works if line[0].work < work < line[-1].work]
            read = sorted({*between, *(point.work for point in line)})
            values = [at_work(members, work, quality) for work in read]
            drawn = [(work, shown(value)) for work, value in zip(read, values, strict=True) if value is not None]
            axis.plot(*zip(*drawn), color=colour, linestyle=style)
            # Points outside the window have no place in the legend either.
            inside = any(window[0] <= point.work <= window[1] for point in line)
            axis.plot(
                [p.work for p in line],
                [shown(getattr(p, quality)) for p in line],
                color=colour,
                linestyle="none",
                marker="o",
                markersize=4,
            )
            if inside:
                axis.plot([], [], color=colour, linestyle=style, marker="o", markersize=4, label=family)
        axis.grid(alpha=0.3, which="both")
        axis.set_xlim(*window)
        # What lies right of the window, a hardly sparse run at 60 dB or more, would squeeze all that lies in it.
        seen = [shown(getattr(p, quality)) for p in points if window[0] <= p.work <= window[1]]
        if seen:
            axis.set_ylim(*limits(seen, log=quality == "ssim"))
    axes[0].set_ylabel("PSNR against the dense run, dB")
    axes[1].set_ylabel("1 - SSIM (lower is better)")
    axes[1].set_yscale("log")
    axes[1].set_xlabel("work (share of the dense run's multiplications)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    share = "as this model has it" if table.share is None else f"{table.share:.0%} of an evaluation"
    scenario = table.scenario
    grids = " and ".join(map(str, scenario.grids))
    title = f"{scenario.model}, {scenario.steps} steps, {grids}: {len(table.rounds)} rounds; attention {share}"
    axes[0].set_title(title, fontsize=10)
    return figure
