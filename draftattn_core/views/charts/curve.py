"""The curve of a schedule, with the steps of a sampler on it and what it predicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ...run.schedule import Schedule
from .canvas import ACCENT, FAINT, INK, LINES, PAPER, Colour, blank, text_size, wrapped, write

DENSE: Colour = (196, 190, 180)
LINE: Colour = (33, 102, 157)
AREA: Colour = (214, 233, 238)
BAND_LINES: tuple[Colour, ...] = ((64, 166, 120), (190, 120, 40), (140, 80, 160), (90, 110, 130))


def even_steps(steps: int) -> tuple[float, ...]:
    """Progress of each of `steps` model evaluations where no sampler's sigmas are known: 0, 1/n, 2/n, ..."""
    return tuple(step / steps for step in range(steps))


def mean_density(schedule: Schedule, progress: Sequence[float], layers: int = 1) -> float:
    """Share of the block pairs a run computes exactly, mean over its steps and layers; dense counts as 1.

    Raises:
        ValueError: if there are no steps or layers.
    """
    if not progress or layers < 1:
        raise ValueError("a mean over no steps or no layers is not defined")
    total = 0.0
    for place in progress:
        for layer in range(layers):
            density = schedule.density(place, layer, layers)
            total += 1.0 if density is None else density
    return total / (len(progress) * layers)


def schedule_curve(
    schedule: Schedule,
    progress: Sequence[float] = (),
    *,
    layers: int = 0,
    title: str = "Sparsity schedule",
    width: int = 720,
    height: int = 300,
) -> Image.Image:
    """Density over progress (0 noisy, 1 clean), dense stretches grey, one dot per step of the sampler.

    Args:
        schedule: what to draw; a layer band is a line of its own.
        progress: where the sampler's steps stand, see `Position.progress`; empty for none.
        layers: how many attention layers the model has, for the prediction; 0 if unknown.
    """
    left, right, above = 52, 18, 54
    picture, pen = blank(width, height + above + 40)
    write(pen, (12, 10), title, size=16)
    plot_w, base = width - left - right, above + height

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * plot_w, base - y * height

    places = np.linspace(0.0, 1.0, plot_w + 1)
    values = [schedule.curve(float(x)) for x in places]
    for column, value in enumerate(values[:-1]):
        line = (left + column, base, left + column, base - value * height)
        pen.line(line, fill=DENSE if value >= 1.0 else AREA)
    for part in range(5):
        y = base - height * part / 4
        pen.line((left, y, left + plot_w, y), fill=LINES)
        write(pen, (left - 8, y), f"{part / 4:.2f}", size=11, anchor="rm")
        tick = left + plot_w * part / 4
        pen.line((tick, base, tick, base + 4), fill=INK)
        write(pen, (tick, base + 7), f"{part / 4:.2f}", size=11, anchor="ma")
    write(pen, (12, above - 14), "density", size=11, fill=FAINT, anchor="lm")
    write(
        pen,
        (left + plot_w / 2, base + 22),
        "progress of the denoising (0 noisy, 1 clean)",
        size=11,
        fill=FAINT,
        anchor="ma",
    )
    for first, last in dense_stretches(values):
        if last - first > 60:
            write(pen, (left + (first + last) / 2, base - height / 2), "dense", size=13, anchor="mm")

    traced = trace(schedule, [float(x) for x in places])
    labels: list[tuple[str, Colour]] = []
    for index, band in enumerate(schedule.bands):
        colour = BAND_LINES[index % len(BAND_LINES)]
        banded = [(x, y if y >= 1.0 else min(1.0, y * band.factor)) for x, y in traced]
        pen.line([at(x, y) for x, y in banded], fill=colour, width=2)
        labels.append((f"layers {band.first} to {band.last}: x {band.factor:g}", colour))
    pen.line([at(x, y) for x, y in traced], fill=LINE, width=2)
    for index, (label, colour) in enumerate(labels):
        end, top = left + plot_w - 6, above + 6 + 18 * index
        pen.rectangle((end - text_size(label, 12)[0] - 4, top - 2, end + 3, top + 15), fill=PAPER)
        write(pen, (end, top), label, size=12, fill=colour, anchor="ra")
    for place in progress:
        x, y = at(place, schedule.curve(place))
        pen.line((x, base, x, base - 6), fill=ACCENT)
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=ACCENT, outline=PAPER)
    return _with_caption(picture, _caption(schedule, progress, layers))


def trace(schedule: Schedule, places: Sequence[float]) -> list[tuple[float, float]]:
    """(progress, density) along the curve at `places` and at its own points, both ends of a step included."""
    steps: dict[float, list[float]] = {}
    for x, y in schedule.points:
        steps.setdefault(x, []).append(y)
    return [(x, y) for x in sorted({*places, *steps}) for y in steps.get(x, [schedule.curve(x)])]


def dense_stretches(values: Sequence[float]) -> list[tuple[int, int]]:
    """(first, last) index of every run of values that are 1."""
    runs: list[tuple[int, int]] = []
    for index, value in enumerate(values):
        if value < 1.0:
            continue
        if runs and runs[-1][1] == index - 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _caption(schedule: Schedule, progress: Sequence[float], layers: int) -> str:
    sentences = []
    if progress:
        mean = mean_density(schedule, progress, max(1, layers))
        dense = sum(schedule.curve(place) >= 1.0 for place in progress)
        sentences.append(
            f"{len(progress)} steps (dots), {dense} of them dense. Over the run {mean:.0%} of the block pairs are "
            "computed exactly" + ("." if layers else ", dense layers and bands not counted: the layers are not known.")
        )
    if schedule.dense_layers:
        sentences.append("Always dense: layers " + ", ".join(map(str, schedule.dense_layers)) + ".")
    return " ".join(sentences)


def _with_caption(picture: Image.Image, caption: str) -> Image.Image:
    if not caption:
        return picture
    lines = wrapped(caption, picture.width - 24, 12)
    taller, pen = blank(picture.width, picture.height + 8 + 16 * len(lines) + 8)
    taller.paste(picture, (0, 0))
    for index, line in enumerate(lines):
        write(pen, (12, picture.height + 8 + 16 * index), line, size=12)
    return taller
