"""One picture: error of attention against work, one line a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.calibration.methods import UNIFORM
from benchmarks.calibration.tables import Row

# Colour and style by method; what is not here is grey.
_STYLES = {
    "uniform": ("#555555", "-"),
    "online budgets": ("#1f6fc4", "-"),
    "profile, other seeds": ("#c01818", "-"),
    "oracle": ("#000000", ":"),
    "the paper": ("#8a4b00", "--"),
    "SVG": ("#2a9d5b", "--"),
    "Radial": ("#b888d8", "--"),
    "AdaSpa": ("#e58a1f", "--"),
    "SVG-EAR's selection": ("#17a2b8", "--"),
    "SVG-EAR's selection, mean tail": ("#17a2b8", ":"),
    "error of our tail": ("#9acd32", "--"),
    "Re-ttention": ("#d96a6a", ":"),
    "CalibAtt, exact masks": ("#6e0b0b", "-."),
    "portable masks": ("#7fb2e5", "-."),
}


def on_all(row: Row, rows: Sequence[Row]) -> float:
    """Mean error of a row as it would stand beside rows of more evaluations.

    Some evaluations are harder than others. A row of a few of them is scaled by what one density for all has on all
    evaluations over what it has on those, in the geometric mean of its works.
    """
    at = sorted(row.figures)
    logs = [
        math.log(uniform.mean("rel_l2") / uniform.mean("rel_l2", at))
        for uniform in rows
        if uniform.method == UNIFORM and set(at) <= set(uniform.figures)
    ]
    return row.mean("rel_l2") * math.exp(sum(logs) / len(logs)) if logs else row.mean("rel_l2")


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the picture of the rows' means; see `on_all` for rows of fewer evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, PercentFormatter, ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(12, 6.5), constrained_layout=True)
    for method in dict.fromkeys(row.method for row in rows):
        if method.startswith("profile") and method != "profile, other seeds":
            continue
        points = sorted((row.mean("work"), on_all(row, rows)) for row in rows if row.method == method)
        base = method.removesuffix(" + our tail").removesuffix(", dropped")
        colour, style = _STYLES.get(method, _STYLES.get(base, ("#aaaaaa", ":")))
        if method.endswith(" + our tail"):
            style = "-"
        ours = method in list(_STYLES)[:4]
        width, marker = (2.4, "o") if ours else (1.2, "s")
        # Hollow: another system as published, or its selection with what it skips dropped.
        face = colour if ours or method.endswith(" + our tail") else "white"
        axes.plot(
            *zip(*points, strict=True), color=colour, linestyle=style, linewidth=width, marker=marker, markersize=5,
            markerfacecolor=face, label=method,
        )  # fmt: skip
    axes.set(xlabel="work (exact pairs plus tail, share of dense attention)", ylabel="relative L2 error of attention")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks([0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.8])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5) if low <= tick <= high])
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
