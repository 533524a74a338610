"""The picture of a run's evaluations: which were skipped, what the rule expected, what the error turned out to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from PIL import Image

from ...phrase import Phrase, Text
from ...run import skips
from ...run.evaluation import Outcome
from ...run.report import RunReport
from ...run.step_cache.log import Decision
from ...run.step_cache.settings import Rule
from .look import LIGHT, Look

HEIGHT, LEFT = 110, 46
MEASURED = 0.75  # the place of its colour between little and much


def above(look: Look) -> int:
    """Where the columns begin: below the title and the legend, which takes two rows on a node."""
    return 46 if look.width is None else 66


def evaluations(report: RunReport, width: int = 640, look: Look = LIGHT) -> Image.Image | None:
    """Columns: every evaluation of the run, noisy to clean; None where nobody was to skip any.

    Skipped ones are tinted over their whole height. A bar is the error of the prediction that would have stood in for a
    computed one, a tick what the rule expected of it and its predecessors and held against the threshold, which is the
    line across. Bars and ticks of the forecast are one quantity (relative L2 of the model's output); EasyCache's ticks
    are changes of the output (mean absolute value). Of a plan what was expected is not shown, for it rarely
    decides; a mark below the axis says that an evaluation made good what the forecasts before it missed.
    """
    decided = _by_evaluation(report.decisions)
    if not decided:
        return None
    planned = report.skip.rule == "spread"
    errors = skips.measured_errors(report.decisions)
    expected = {} if planned else _expected(report.decisions)
    threshold = 0.0 if planned else report.skip.threshold
    highest = max([*errors.values(), *expected.values(), 1e-9])
    if 0.0 < threshold <= 3.0 * highest:
        highest = max(highest, threshold)
    top, measured = above(look), look.ramp_colour(MEASURED)
    picture, pen = look.blank(width, top + HEIGHT + 34)
    corrected = {made.index for made in report.decisions if made.corrected}
    if planned:
        title = Phrase("chart_evaluations_planned", "Evaluations: skipped and measured error")
    else:
        title = Phrase("chart_evaluations", "Evaluations: skipped, expected and measured error")
    pen.write((0, 0), title, size=13)
    pen.paste(_legend(decided, len(corrected), report.skip.rule, width, look), (0, 20))
    base, count = top + HEIGHT, 1 + max(decided)
    column = (width - LEFT - 80) / count
    for index, outcome in decided.items():
        x = LEFT + index * column
        last = x + max(1.0, column - 2)
        if outcome != "computed":
            pen.rectangle((x, top, last, base), fill=look.skipped)
        if index in errors:
            pen.rectangle((x, base - errors[index] / highest * HEIGHT, last, base), fill=measured)
        if index in corrected:
            pen.rectangle((x, base + 1, last, base + 3), fill=look.accent)
        if index in expected:
            y = base - expected[index] / highest * HEIGHT
            pen.line((x, y, last, y), fill=look.ink, width=2)
    right = LEFT + count * column
    pen.line((LEFT, base, right, base), fill=look.ink)
    if 0.0 < threshold <= highest:
        y = base - threshold / highest * HEIGHT
        pen.line((LEFT, y, right, y), fill=look.accent)
        pen.write((right + 6, y), Phrase("chart_threshold", "threshold"), size=11, fill=look.accent, anchor="lm")
    pen.write((LEFT - 6, top), f"{highest:.2g}", size=11, anchor="rm")
    pen.write((LEFT - 6, base), "0", size=11, anchor="rm")
    every = next((step for step in (1, 2, 5, 10, 20, 50) if step * column >= 24), count)
    for index in range(0, count, every):
        pen.write((LEFT + (index + 0.5) * column, base + 4), str(index + 1), size=11, anchor="ma")
    centre = LEFT + count * column / 2
    axis = Phrase("chart_evaluation_axis", "evaluation (noisy to clean)")
    pen.write((centre, base + 20), axis, size=11, fill=look.faint, anchor="ma")
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


def _legend(decided: dict[int, str], corrected: int, rule: Rule, width: int, look: Look) -> Image.Image:
    skipped = Counter(outcome for outcome in decided.values() if outcome != "computed")
    entries = [(look.skipped, skipped_in_words(outcome, number)) for outcome, number in skipped.items()]
    entries.append((look.ramp_colour(MEASURED), Phrase("chart_measured", "measured error")))
    if rule != "spread":
        entries.append((look.ink, Phrase("chart_expected", "expected, summed")))
    elif corrected:
        entries.append((look.accent, Phrase("chart_corrected", "corrected ({count})", count=corrected)))
    return look.legend(entries, width)


def skipped_in_words(outcome: str, count: int) -> Text:
    """So many evaluations or steps that were answered without the model, by what they were answered with."""
    return Phrase("chart_skipped", "skipped: {outcome} ({count})", outcome=Outcome(outcome), count=count)
