"""The frontier in short, for those who choose: the speeds beside fewer steps at their work, as tables and one picture.

Everything here is made of the rows of `frontier.json`; a test holds the README to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.frontier.fronts import SAME_WORK, Point, at_work, by_family, envelope, front
from benchmarks.frontier.plot import limits
from benchmarks.frontier.speeds import STEPS, Candidate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (checkpoint, size) of a scenario of `STEPS` steps -> what users are told it is.
SCENARIOS = {
    ("calm", "small"): "calm, 3,072 tokens",
    ("lively", "small"): "lively, 3,072 tokens",
    ("calm", "real"): "calm, 8,640 tokens",
}
# Family -> its name in the README. Works at which each scenario's column stands.
FAMILIES = {
    "dense, Euler": "fewer steps, Euler",
    "dense, dpmpp_2m": "fewer steps, DPM++ 2M",
    "dense, uni_pc": "fewer steps, UniPC",
    "easycache": "EasyCache",
    "ComfyUI's EasyCache": "ComfyUI's own EasyCache",
    "forecast": "forecast by threshold",
    "spread": "spread: planned, forecast, corrected",
    "spread x sparse, ours with budgets": "spread, sparse by budgets (any setting)",
    "dpmpp_2m x sparse, ours with budgets": "fewer DPM++ 2M steps, sparse",
}
COLUMNS = {("calm", "small"): (0.2, 0.3, 0.4), ("lively", "small"): (0.2, 0.3, 0.4), ("calm", "real"): (0.2, 0.3)}
# A line needs two points to be read between.
LEAST_POINTS = 2
_SHOWN = (0.12, 0.52)
_PAPER = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
# Where a name stands from its dot, in points: most dots rise in PSNR and fall in 1 - SSIM.
_PLACES = {
    "psnr": {"quality": (7, -12), "other": (-6, 5)},
    "ssim": {"quality": (6, -10), "other": (-6, -13)},
}
_LINES = {"fewer steps, best sampler": "#777777", "EasyCache": "#1f6fc4", "Skip Steps (spread), dense": "#0b2f66"}


def points_of(rows: Sequence[Mapping[str, Any]], model: str, size: str) -> list[Point]:
    """A mean for every method that acts, over the rounds of a scenario of `STEPS` steps."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if (row["model"], row["size"], row["steps"]) == (model, size, STEPS) and row["acts"]:
            found.setdefault((row["family"], row["method"]), []).append(row)

    def mean(some: Sequence[Mapping[str, Any]], name: str) -> float:
        return float(sum(row[name] for row in some) / len(some))

    return [
        Point(method, family, mean(some, "work"), mean(some, "psnr_db"), mean(some, "ssim"), mean(some, "flicker"))
        for (family, method), some in found.items()
    ]


def rounds_of(rows: Sequence[Mapping[str, Any]], model: str, size: str) -> int:
    """How many rounds a scenario of `STEPS` steps stands on."""
    here = [row for row in rows if (row["model"], row["size"], row["steps"]) == (model, size, STEPS)]
    return len({(row["grid"], row["seed"]) for row in here})


def speed_point(points: Sequence[Point], speed: Candidate) -> Point:
    """The row of a speed."""
    (found,) = (point for point in points if point.family in FAMILIES and point.method == speed.method)
    return found


def fewer_steps(points: Sequence[Point], work: float, quality: str) -> tuple[float, float]:
    """The best dense run of fewer steps at a work: that work and its quality.

    Where no number of steps is that cheap, the cheapest that was measured has the advantage of more work.
    """
    dense = [point for point in points if point.family.startswith("dense")]
    at = max(work, min(point.work for point in dense))
    best = envelope(dense, at, quality)
    assert best is not None
    return at, best[1]


def speeds_table(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Candidate]) -> str:
    """The speeds, and beside each what fewer steps have at its work."""
    lines = [
        f"| `speed` | steps of {STEPS} computed, density | " + " | ".join(SCENARIOS.values()) + " |",
        "|---" * (2 + len(SCENARIOS)) + "|",
    ]
    for name, speed in chosen.items():
        cells = []
        for model, size in SCENARIOS:
            points = points_of(rows, model, size)
            ours = speed_point(points, speed)
            (at, psnr), (_, ssim) = (fewer_steps(points, ours.work, quality) for quality in ("psnr", "ssim"))
            dearer = f" at {at:.2f}" if at > ours.work + SAME_WORK else ""
            mine = _closer(f"{ours.psnr:.1f}", ours.psnr > psnr), _closer(f"{ours.ssim:.3f}", ours.ssim > ssim)
            theirs = _closer(f"{psnr:.1f}", psnr > ours.psnr), _closer(f"{ssim:.3f}", ssim > ours.ssim)
            cells.append(f"at {ours.work:.2f}: {mine[0]} ({mine[1]}); fewer steps{dearer}: {theirs[0]} ({theirs[1]})")
        lines.append(f"| `{name}` | {speed.share * STEPS:.0f}, {speed.density_word} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _closer(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def families_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every lever at a few works, PSNR (SSIM), the best of a column in bold."""
    heads = [
        f"{SCENARIOS[where].split(',')[0] + ', ' if place == 0 else ''}{work:.2f}"
        if where[1] == "small"
        else f"{'8,640 tokens, ' if place == 0 else ''}{work:.2f}"
        for where, works in COLUMNS.items()
        for place, work in enumerate(works)
    ]
    lines = ["| at a work of | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    points = {where: by_family([p for p in points_of(rows, *where) if p.family in FAMILIES]) for where in COLUMNS}
    for family, name in FAMILIES.items():
        cells = []
        for where, works in COLUMNS.items():
            members = points[where].get(family, [])
            for work in works:
                if len(members) < LEAST_POINTS and not any(abs(p.work - work) < 0.005 for p in members):
                    cells.append("-")
                    continue
                texts = []
                for quality, digits in (("psnr", 1), ("ssim", 3)):
                    value = at_work(members, work, quality)
                    others = [at_work(some, work, quality) for some in points[where].values()]
                    best = value is not None and value == max(other for other in others if other is not None)
                    text = "-" if value is None else f"{value:.{digits}f}"
                    texts.append(_closer(text, best))
                cells.append("-" if texts[0] == "-" else f"{texts[0]} ({texts[1]})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_picture(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Candidate], path: Path) -> None:
    """Write `draw`'s figure."""
    draw(rows, chosen).savefig(path, dpi=100)


def draw(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Candidate]) -> Figure:
    """PSNR above, 1 - SSIM below, a column for each scenario: three lines, and the speeds as dots with their names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    there = {where: title for where, title in SCENARIOS.items() if rounds_of(rows, *where)}
    axes = figure.subplots(2, len(there), sharex=True, squeeze=False)
    for column, ((model, size), title) in enumerate(there.items()):
        points = points_of(rows, model, size)
        for axis, quality in zip(axes[:, column], ("psnr", "ssim"), strict=True):
            _one(axis, points, quality, [(name, speed_point(points, speed)) for name, speed in chosen.items()])
        axes[0, column].set_title(f"{title}: {rounds_of(rows, model, size)} rounds", fontsize=10)
        axes[1, column].set_xlabel("work (share of the dense run's multiplications)")
    axes[0, 0].set_ylabel("PSNR against the dense run, dB")
    axes[1, 0].set_ylabel("1 - SSIM (lower is better)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _one(axis: Any, points: Sequence[Point], quality: str, speeds: Sequence[tuple[str, Point]]) -> None:
    shown: Callable[[float], float] = (lambda v: v) if quality == "psnr" else (lambda v: max(1e-4, 1 - v))
    dense = [point for point in points if point.family.startswith("dense")]
    families = by_family(points)
    grid = [_SHOWN[0] + 0.005 * i for i in range(round((_SHOWN[1] - _SHOWN[0]) / 0.005) + 1)]
    # No line where no number of steps was measured.
    dearest = max(point.work for point in dense)
    best = [(w, found[1]) for w in grid if w <= dearest and (found := envelope(dense, w, quality)) is not None]
    lines = [best] + [
        [(p.work, getattr(p, quality)) for p in front(families.get(name, ()), quality)]
        for name in ("easycache", "spread")
    ]
    for line, (label, colour) in zip(lines, _LINES.items(), strict=True):
        marker = None if line is best else "o"
        axis.plot(
            [w for w, _ in line], [shown(v) for _, v in line], color=colour, marker=marker, markersize=4, label=label
        )
    dots = [(point.work, shown(getattr(point, quality))) for _, point in speeds]
    axis.plot(
        *zip(*dots),
        color="#7a1fd0",
        marker="o",
        markersize=8,
        linestyle="none",
        label="speed (Skip Steps, sparse)",
        zorder=4,
    )
    for (name, _), dot in zip(speeds, dots, strict=True):
        place = _PLACES[quality].get(name, _PLACES[quality]["other"])
        axis.annotate(
            name,
            dot,
            textcoords="offset points",
            xytext=place,
            ha="right" if place[0] < 0 else "left",
            fontsize=9,
            bbox=_PAPER,
            zorder=3,
        )
    seen = [value for line in lines for work, v in line if _SHOWN[0] <= work <= _SHOWN[1] for value in [shown(v)]]
    axis.set_xlim(*_SHOWN)
    low, high = limits([*seen, *(value for _, value in dots)], log=quality == "ssim")
    if quality == "ssim":
        axis.set_yscale("log")
        # Room for the lowest dot's name.
        low /= 1.25
    axis.set_ylim(low, high)
    axis.grid(alpha=0.3, which="both")
