"""The density map of a run: steps x layers, with the reasons of dense calls, time per step and tail per layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ...phrase import Phrase
from ...run.report import EXPECTED_REASONS, DenseReason, RunReport
from .canvas import Colour, on, wrapped
from .evaluations import evaluations, skipped_in_words
from .look import LIGHT, Look, Pen

REASON_COLOURS: dict[DenseReason, Colour] = {
    DenseReason.SCHEDULE: (196, 190, 180),
    DenseReason.DENSE_LAYER: (150, 140, 128),
    DenseReason.CROSS_ATTENTION: (225, 222, 216),
    DenseReason.BUDGET: (104, 96, 88),
    DenseReason.FEW_TOKENS: (240, 196, 110),
    DenseReason.UNKNOWN_GRID: (236, 160, 92),
    DenseReason.TOKENS: (228, 132, 84),
    DenseReason.MASK: (222, 110, 120),
    DenseReason.BACKEND: (206, 92, 150),
    DenseReason.HEADS: (112, 104, 170),
    DenseReason.NON_FINITE: (168, 84, 168),
    DenseReason.OUT_OF_MEMORY: (150, 60, 120),
    DenseReason.ERROR: (214, 69, 65),
    DenseReason.STOOD_ASIDE: (158, 42, 43),
}
# What a line of small words takes.
_LINE = 14


@dataclass
class Cell:
    """The calls of one step in one layer.

    Attributes:
        densities: of the sparse calls.
        reasons: of the dense ones.
        seconds: of all.
        answered: what answered the step's evaluations without the model; None if nothing did.
    """

    densities: list[float] = field(default_factory=list)
    reasons: Counter[DenseReason] = field(default_factory=Counter)
    seconds: float = 0.0
    answered: str | None = None

    @property
    def density(self) -> float | None:
        """Mean density of the sparse calls; None if there were none."""
        return sum(self.densities) / len(self.densities) if self.densities else None

    @property
    def reason(self) -> DenseReason | None:
        """The reason to show: an unexpected one before an expected one."""
        ordered = sorted(self.reasons.items(), key=lambda item: (item[0] in EXPECTED_REASONS, -item[1]))
        return ordered[0][0] if ordered else None


def cells(report: RunReport) -> list[list[Cell]]:
    """Steps x layers; the calls outside the video self-attention are left out. Empty if there were none."""
    placed = [(call, call.position) for call in list(report.calls) if call.position is not None]
    if not placed:
        return []
    steps = 1 + max(position.step for _, position in placed)
    layers = 1 + max(position.layer for _, position in placed)
    steps = max(steps, 1 + max(report.answered, default=-1))
    table = [[Cell(answered=report.answered.get(step)) for _ in range(layers)] for step in range(steps)]
    for call, position in placed:
        cell = table[position.step][position.layer]
        cell.seconds += call.seconds()
        if call.reason is not None:
            cell.reasons[call.reason] += 1
        elif call.density is not None:
            cell.densities.append(float(call.density))
    return table


def scale_top(table: list[list[Cell]]) -> float:
    """Top of the colour scale: the smallest of a few round densities that holds every sparse call."""
    highest = max((value for row in table for cell in row for value in cell.densities), default=1.0)
    return next((top for top in (0.1, 0.2, 0.4, 0.6, 0.8) if highest <= top), 1.0)


def density_map(report: RunReport, title: str = "Density of every attention call", look: Look = LIGHT) -> Image.Image:
    """Picture of `cells`: steps to the right, layers downwards, colour = density, dense cells by reason, and a legend.

    A corner mark shows a cell where an unexpected dense reason hides among sparse calls.
    """
    table = cells(report)
    if not table:
        picture, pen = look.blank(look.width or 420, 90)
        pen.write((look.margin, look.margin), title, size=16)
        pen.write(
            (look.margin, 44), Phrase("chart_no_call", "No attention call of this run was seen."), fill=look.faint
        )
        return picture
    top = scale_top(table)
    plot = _plot(table, top, look)
    bar = look.colour_bar(top, max(60, look.size(plot)[1] - 70), Phrase("chart_density", "density"))
    body = look.stack([plot, bar], across=True, gap=16)
    width = look.width or max(look.size(body)[0], 380)
    parts = [_heading(report, title, width, look), body, _legend(table, width, look)]
    return look.framed(look.stack(parts, gap=6))


def _heading(report: RunReport, title: str, width: int, look: Look) -> Image.Image:
    """On a node the story stands beside the picture."""
    lines = wrapped(report.summary(), width, 12) if look.width is None else []
    picture, pen = look.blank(width, 26 + 16 * len(lines))
    pen.write((0, 0), title, size=16)
    for index, line in enumerate(lines):
        pen.write((0, 24 + 16 * index), line, size=12, fill=look.faint)
    return picture


def _plot(table: list[list[Cell]], top: float, look: Look) -> Image.Image:
    steps, layers = len(table), len(table[0])
    left, above = 46, 4
    if look.width is None:
        cell_w, cell_h = int(np.clip(640 // steps, 10, 40)), int(np.clip(420 // layers, 8, 26))
    else:
        cell_w = int(np.clip((look.width - left - 82) // steps, 2, 40))
        cell_h = int(np.clip(260 // layers, 4, 26))
    picture, pen = look.blank(left + steps * cell_w + 2, above + layers * cell_h + 36)
    for step, row in enumerate(table):
        for layer, cell in enumerate(row):
            box = (left + step * cell_w, above + layer * cell_h)
            _draw_cell(pen, cell, box, (cell_w, cell_h), top)
    every_layer, every_step = _stride(layers, cell_h, 14), _stride(steps, cell_w, 24)
    for layer in range(0, layers, every_layer):
        pen.write((left - 6, above + (layer + 0.5) * cell_h), str(layer), size=11, anchor="rm")
    for step in range(0, steps, every_step):
        pen.write((left + (step + 0.5) * cell_w, above + layers * cell_h + 4), str(step + 1), size=11, anchor="ma")
    pen.write((0, above + layers * cell_h + 4), Phrase("chart_layers", "layer"), size=11, fill=look.faint)
    centre = left + steps * cell_w / 2
    steps_text = Phrase("chart_steps", "step (noisy to clean)")
    pen.write((centre, above + layers * cell_h + 20), steps_text, size=11, fill=look.faint, anchor="ma")
    return picture


def _stride(count: int, pixels: int, wanted: int) -> int:
    """Every how many-th label has room."""
    least = -(-wanted // pixels)
    return next((s for s in (1, 2, 5, 10, 20, 50) if s >= least), count)


def _draw_cell(pen: Pen, cell: Cell, corner: tuple[int, int], size: tuple[int, int], top: float) -> None:
    (x, y), (w, h), look = corner, size, pen.look
    box = (x, y, x + w - 2, y + h - 2)
    density, reason = cell.density, cell.reason
    if density is not None:
        colour = look.ramp_colour(density, top)
        pen.rectangle(box, fill=colour)
        if w >= 30 and h >= 14:
            label = f"{density:.2f}".lstrip("0")
            pen.write((x + w / 2 - 1, y + h / 2 - 1), label, size=11, fill=on(colour), anchor="mm")
        if reason is not None and reason not in EXPECTED_REASONS:
            corner_size = min(w, h) // 2
            pen.polygon([(x, y), (x + corner_size, y), (x, y + corner_size)], fill=REASON_COLOURS[reason])
    elif reason is not None:
        pen.rectangle(box, fill=REASON_COLOURS[reason])
    elif cell.answered is not None:
        pen.rectangle((x, y, x + w - 2, y + h - 1), fill=look.skipped)
    else:
        pen.rectangle(box, fill=look.unseen, outline=look.lines)


def _legend(table: list[list[Cell]], width: int, look: Look) -> Image.Image:
    """Colours of the dense reasons that occur with their numbers of calls, and of skipped steps with theirs."""
    counts: Counter[DenseReason] = Counter()
    unseen = False
    for row in table:
        for cell in row:
            counts += cell.reasons
            unseen |= cell.density is None and cell.reason is None and cell.answered is None
    entries: list[tuple[Colour, str]] = [
        (REASON_COLOURS[reason], Phrase("chart_dense", "dense: {reason} ({count})", reason=reason, count=number))
        for reason, number in counts.most_common()
    ]
    skipped = Counter(row[0].answered for row in table if row[0].answered and not any(map(_has_calls, row)))
    entries += [(look.skipped, skipped_in_words(answered, number)) for answered, number in skipped.most_common()]
    if unseen:
        entries.append((look.unseen, Phrase("chart_unseen", "no call seen")))
    return look.legend(entries, width)


def _has_calls(cell: Cell) -> bool:
    return bool(cell.densities or cell.reasons)


def seconds_per_step(report: RunReport, width: int = 640, look: Look = LIGHT) -> Image.Image:
    """Bars: attention seconds of every step, in front of the model's own where the host reports it, what dense takes,
    and a key to the bars.

    The lines are measured, not predicted: the mean of the run's own dense self-attention calls times the calls of a
    step, and the median of its dense steps, as `RunReport.median_step_seconds` has it. They are missing if nothing ran
    dense.
    """
    table = cells(report)
    height, left = 110, 46
    whole = report.step_seconds()
    key = look.legend(_bars_key(table, bool(whole), look), width)
    picture, pen = look.blank(width, height + 50 + look.size(key)[1])
    title = (
        Phrase("chart_seconds_model", "Seconds per step")
        if whole
        else Phrase("chart_seconds", "Attention seconds per step")
    )
    pen.write((0, 0), title, size=13)
    if not table:
        return picture
    pen.paste(key, (0, height + 48))
    totals = [sum(cell.seconds for cell in row) for row in table]
    calls = [sum(len(cell.densities) + cell.reasons.total() for cell in row) for row in table]
    _, dense = report.mean_seconds()
    level = None if dense is None else dense * max(calls)
    _, dense_step = report.median_step_seconds()
    highest = max([*totals, *whole.values(), level or 0.0, dense_step or 0.0, 1e-9])
    base, step_w = height + 24, (width - left - 120) / len(totals)
    for index, seconds in enumerate(totals):
        x = left + index * step_w
        last = x + max(1.0, step_w - 2)
        sparse = any(cell.densities for cell in table[index])
        colour = _bar_colour(sparse, look)
        if index in whole:
            pen.rectangle((x, base - whole[index] / highest * height, last, base), fill=look.lines)
        pen.rectangle((x, base - seconds / highest * height, last, base), fill=colour)
    pen.line((left, base, left + len(totals) * step_w, base), fill=look.ink)
    pen.write((left - 6, base - height), f"{highest:.3g}", size=11, anchor="rm")
    pen.write((left - 6, base), "0", size=11, anchor="rm")
    for index in range(0, len(totals), _stride(len(totals), max(1, int(step_w)), 24)):
        pen.write((left + (index + 0.5) * step_w, base + 4), str(index + 1), size=11, anchor="ma")
    right = left + len(totals) * step_w
    marks = [
        (base - measured / highest * height, colour, label)
        for measured, colour, label in (
            (level, look.accent, Phrase("chart_all_dense", "all calls dense")),
            (dense_step, look.faint, Phrase("chart_dense_step", "dense step")),
        )
        if measured is not None
    ]
    for (y, colour, label), beside in zip(marks, _apart([y for y, _, _ in marks], _LINE), strict=True):
        pen.line((left, y, right, y), fill=colour)
        pen.write((right + 6, beside), label, size=11, fill=colour, anchor="lm")
    return picture


def _apart(places: list[float], least: float) -> list[float]:
    """One or two places, moved away from each other where they are nearer than `least`."""
    if len(places) < 2 or abs(places[0] - places[1]) >= least:
        return places
    middle, upper = sum(places) / 2, -1 if places[0] < places[1] else 1
    return [middle + upper * least / 2, middle - upper * least / 2]


def _bar_colour(sparse: bool, look: Look) -> Colour:
    return look.ramp_colour(0.55) if sparse else REASON_COLOURS[DenseReason.SCHEDULE]


def _bars_key(table: list[list[Cell]], whole: bool, look: Look) -> list[tuple[Colour, str]]:
    """What the bars of `seconds_per_step` are, those that occur."""
    sparse = [any(cell.densities for cell in row) for row in table if any(map(_has_calls, row))]
    entries: list[tuple[Colour, str]] = []
    if any(sparse):
        entries.append((_bar_colour(True, look), Phrase("chart_attention_sparse", "attention, sparse step")))
    if not all(sparse):
        entries.append((_bar_colour(False, look), Phrase("chart_attention_dense", "attention, dense step")))
    if whole:
        entries.append((look.lines, Phrase("chart_whole_model", "whole model")))
    return entries


def tails_per_layer(report: RunReport, look: Look = LIGHT) -> Image.Image | None:
    """Table: per layer, the tail most heads ended up with and the probe's mean error of every tail; None without a
    probe. On a node the rows of many layers are low and have no figures."""
    if not report.tail_errors:
        return None
    names = list(next(iter(report.tail_errors.values())))
    label_w, column, row_h, width = 190, 72, 18, max(190 + 72 * len(names), 480)  # wide enough for the heading
    heading: str = "Error of each tail, measured on this model (relative L2, lower is better)"
    if look.width is not None:
        label_w, width = 120, look.width
        heading = Phrase("chart_tails", "Error of each tail (relative L2, lower is better)")
        column, row_h = (width - label_w) // len(names), int(np.clip(216 // len(report.tail_errors), 4, 18))
    picture, pen = look.blank(width, 40 + row_h * len(report.tail_errors))
    pen.write((0, 0), heading, size=13)
    for index, name in enumerate(names):
        pen.write((label_w + column * (index + 0.5), 22), name, size=11, fill=look.faint, anchor="ma")
    top = max(min(1.0, value) for errors in report.tail_errors.values() for value in errors.values())
    for row, (layer, errors) in enumerate(sorted(report.tail_errors.items())):
        y = 40 + row_h * row
        heads = report.tails.get(layer, ())
        chosen = Counter(heads).most_common(1)
        label: str = Phrase("chart_layer", "layer {layer}", layer=layer)
        if chosen:
            label = Phrase("chart_layer_tail", "layer {layer}: {tail}", layer=layer, tail=chosen[0][0])
            if look.width is None:
                label += f" ({chosen[0][1]} of {len(heads)} heads)"
        if row % _stride(len(report.tail_errors), row_h, 14) == 0:
            pen.write((0, y + row_h / 2 - 1), label, size=11, anchor="lm")
        for index, name in enumerate(names):
            x, value = label_w + column * index, errors.get(name, float("nan"))
            colour = look.ramp_colour(value, top) if np.isfinite(value) else look.unseen
            pen.rectangle((x, y, x + column - 2, y + row_h - 2), fill=colour)
            if row_h >= 14:
                pen.write((x + column / 2, y + row_h / 2 - 1), error_text(value), size=11, fill=on(colour), anchor="mm")
    return picture


def error_text(error: float) -> str:
    """Three digits after the point, or one that counts where those would be zero."""
    return f"{error:.3f}" if error >= 0.0005 or error == 0.0 or not np.isfinite(error) else f"{error:.0e}"


def report_sheet(report: RunReport, title: str = "DraftAttention report", look: Look = LIGHT) -> Image.Image:
    """Density map, seconds per step, evaluations where some were to be skipped and, where the probe ran, the tails,
    below each other, with the run's notes. Where only steps are skipped there is no attention to draw. On a node the
    story and the notes are left out: they stand beside the picture."""
    seen, skipping = bool(cells(report)), bool(report.decisions)
    parts, width = [], look.width or 420
    if seen or not skipping:
        on_node = Phrase("chart_density_map", "Density by step and layer")
        parts.append(density_map(report, title if look.width is None else on_node, look))
    elif look.width is None:
        parts.append(look.framed(_heading(report, title, 640, look)))
    if parts:
        width = max(width, look.size(parts[0])[0] - 2 * look.margin)
    if seen:
        parts.append(look.framed(seconds_per_step(report, width, look)))
    drawn = evaluations(report, width, look)
    if drawn is not None:
        parts.append(look.framed(drawn))
    tails = tails_per_layer(report, look)
    if tails is not None:
        parts.append(look.framed(tails))
    if report.notes and look.width is None:
        width = max(look.size(part)[0] for part in parts) - 2 * look.margin
        lines = [line for note in report.notes for line in wrapped(note, width, 12)]
        notes, pen = look.blank(width, 16 * len(lines))
        for index, line in enumerate(lines):
            pen.write((0, 16 * index), line, size=12, fill=look.accent)
        parts.append(look.framed(notes))
    return look.stack(parts, gap=0)
