"""The picture of a run's evaluations: which were skipped, what the rule expected, what the error turned out to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from ...run import skips
from ...run.report import RunReport
from ...run.step_cache.log import Decision
from .canvas import ACCENT, FAINT, INK, LINES, Colour, blank, ramp_colour, text_size, write

SKIPPED: Colour = (214, 228, 240)
MEASURED: Colour = ramp_colour(0.75)
EXPECTED: Colour = INK
HEIGHT, LEFT, ABOVE = 110, 46, 46


def evaluations(report: RunReport, width: int = 640) -> Image.Image | None:
    """Columns: every evaluation of the run, noisy to clean; None where nobody was to skip any.

    Skipped ones are tinted over their whole height. A bar is the error of the prediction that would have stood in for a
    computed one, a tick what the rule expected of it and its predecessors and held against the threshold, which is the
    line across. Bars and ticks of the forecast are one quantity (relative L2 of the model's output); EasyCache's ticks
    are changes of the output (mean absolute value).
    """
    decided = _by_evaluation(report.decisions)
    if not decided:
        return None
    errors, expected = skips.measured_errors(report.decisions), _expected(report.decisions)
    threshold = report.skip.threshold
    highest = max([*errors.values(), *expected.values(), 1e-9])
    if 0.0 < threshold <= 3.0 * highest:
        highest = max(highest, threshold)
    picture, pen = blank(width, ABOVE + HEIGHT + 34)
    write(pen, (0, 0), "Evaluations: skipped, expected and measured error", size=13)
    _legend(pen, decided)
    base, count = ABOVE + HEIGHT, 1 + max(decided)
    column = (width - LEFT - 80) / count
    for index, outcome in decided.items():
        x = LEFT + index * column
        last = x + max(1.0, column - 2)
        if outcome != "computed":
            pen.rectangle((x, ABOVE, last, base), fill=SKIPPED)
        if index in errors:
            pen.rectangle((x, base - errors[index] / highest * HEIGHT, last, base), fill=MEASURED)
        if index in expected:
            y = base - expected[index] / highest * HEIGHT
            pen.line((x, y, last, y), fill=EXPECTED, width=2)
    right = LEFT + count * column
    pen.line((LEFT, base, right, base), fill=INK)
    if 0.0 < threshold <= highest:
        y = base - threshold / highest * HEIGHT
        pen.line((LEFT, y, right, y), fill=ACCENT)
        write(pen, (right + 6, y), "threshold", size=11, fill=ACCENT, anchor="lm")
    write(pen, (LEFT - 6, ABOVE), f"{highest:.2g}", size=11, anchor="rm")
    write(pen, (LEFT - 6, base), "0", size=11, anchor="rm")
    every = next((step for step in (1, 2, 5, 10, 20, 50) if step * column >= 24), count)
    for index in range(0, count, every):
        write(pen, (LEFT + (index + 0.5) * column, base + 4), str(index + 1), size=11, anchor="ma")
    centre = LEFT + count * column / 2
    write(pen, (centre, base + 20), "evaluation (noisy to clean)", size=11, fill=FAINT, anchor="ma")
    return picture


def _by_evaluation(decisions: Iterable[Decision]) -> dict[int, str]:
    """Outcome by index; skipped if any of its context windows was."""
    found: dict[int, str] = {}
    for made in decisions:
        if found.get(made.index, "computed") == "computed":
            found[made.index] = made.outcome.value
    return found


def _expected(decisions: Iterable[Decision]) -> dict[int, float]:
    """The largest finite estimate by index."""
    found: dict[int, float] = {}
    for made in decisions:
        if made.estimate is not None and np.isfinite(made.estimate):
            found[made.index] = max(made.estimate, found.get(made.index, 0.0))
    return found


def _legend(pen: ImageDraw.ImageDraw, decided: dict[int, str]) -> None:
    skipped = Counter(outcome for outcome in decided.values() if outcome != "computed")
    entries = [(SKIPPED, f"skipped: {outcome} ({number})") for outcome, number in skipped.items()]
    entries += [(MEASURED, "measured error"), (EXPECTED, "expected, summed")]
    x = 0
    for colour, label in entries:
        pen.rectangle((x, 22, x + 13, 35), fill=colour, outline=LINES)
        write(pen, (x + 19, 29), label, size=12, anchor="lm")
        x += 35 + text_size(label, 12)[0]
