"""The picture of a run's evaluations says by its colours which were skipped, what was expected, what was measured."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from draftattention.draftattn_core import RunReport
from draftattention.draftattn_core.run.evaluation import Outcome
from draftattention.draftattn_core.run.report import Call, Position
from draftattention.draftattn_core.run.step_cache import Decision, Reason, StepCacheSettings
from draftattention.draftattn_core.views.charts import report_sheet
from draftattention.draftattn_core.views.charts.canvas import ACCENT
from draftattention.draftattn_core.views.charts.evaluations import (
    HEIGHT,
    LEFT,
    MEASURED,
    above,
    evaluations,
)
from draftattention.draftattn_core.views.charts.look import LIGHT

WIDTH = 640


def skipping(threshold: float = 0.1) -> RunReport:
    """Four evaluations: computed without a prediction, computed with an error of 0.2, forecast, computed with 0.05."""
    told = (
        (Outcome.COMPUTED, Reason.FIRST, None, None),
        (Outcome.COMPUTED, Reason.FIRST, None, 0.2),
        (Outcome.FORECAST, Reason.BELOW, 0.08, None),
        (Outcome.COMPUTED, Reason.LAST, 0.15, 0.05),
    )
    report = RunReport(skip=StepCacheSettings("forecast", threshold), steps=4)
    report.decisions = tuple(
        Decision(i, "m", None, 1 - i / 4, i / 4, outcome, reason, estimate, error, 1, 0)
        for i, (outcome, reason, estimate, error) in enumerate(told)
    )
    for made in report.decisions:
        report.add_outcome(made.outcome.value, made.index)
    return report


def drawn(report: RunReport) -> Image.Image:
    picture = evaluations(report, WIDTH)
    assert picture is not None
    return picture


def column(picture: Image.Image, index: int, count: int = 4) -> list[tuple[int, ...]]:
    """Colours down the middle of an evaluation's column, top to bottom, axis left out."""
    x = int(LEFT + (index + 0.4) * (WIDTH - LEFT - 80) / count)
    return [picture.getpixel((x, y)) for y in range(above(LIGHT), above(LIGHT) + HEIGHT)]  # type: ignore[misc]


def test_skipped_evaluations_are_tinted_and_computed_ones_have_a_bar_as_high_as_their_error() -> None:
    columns = [column(drawn(skipping(threshold=0.0)), index) for index in range(4)]
    assert [column.count(LIGHT.ramp_colour(MEASURED)) for column in columns][:3] == [0, HEIGHT, 0]
    # A quarter of the highest error, less where the tick of what was expected crosses nothing of it.
    assert abs(columns[3].count(LIGHT.ramp_colour(MEASURED)) - HEIGHT / 4) <= 2
    assert [LIGHT.skipped in column for column in columns] == [False, False, True, False]


def test_the_tick_stands_at_what_was_expected_and_the_line_at_the_threshold() -> None:
    columns = [column(drawn(skipping()), index) for index in range(4)]
    ticks = [[y for y, colour in enumerate(column) if colour == LIGHT.ink] for column in columns]
    assert [bool(found) for found in ticks] == [False, False, True, True]
    assert abs(ticks[2][0] - HEIGHT * (1 - 0.08 / 0.2)) <= 2 and abs(ticks[3][0] - HEIGHT * (1 - 0.15 / 0.2)) <= 2
    assert all(abs(column.index(ACCENT) - HEIGHT / 2) <= 2 for column in columns)
    assert ACCENT not in column(drawn(skipping(threshold=5.0)), 0), "a threshold far off would flatten the rest"


def test_a_plan_has_no_threshold_and_marks_below_the_axis_what_was_corrected() -> None:
    report = skipping()
    report.skip = StepCacheSettings("spread")
    report.decisions = tuple(
        replace(made, estimate=None, corrected=index in (1, 3)) for index, made in enumerate(report.decisions)
    )
    picture = drawn(report)
    assert all(ACCENT not in column(picture, index) for index in range(4))
    below = above(LIGHT) + HEIGHT + 2
    marks = [picture.getpixel((int(LEFT + (index + 0.4) * (WIDTH - LEFT - 80) / 4), below)) for index in range(4)]
    assert [colour == ACCENT for colour in marks] == [False, True, False, True]


def test_where_nobody_was_to_skip_anything_there_is_no_such_picture() -> None:
    assert evaluations(RunReport(), WIDTH) is None
    alone = RunReport()
    alone.add(Call(Position(0, 0.0, 0, 1), 0.3, None, 100.0, lambda: 1.0))
    before = report_sheet(alone)
    alone.skip = StepCacheSettings("forecast")
    assert report_sheet(alone) == before


def test_a_run_that_only_skips_steps_has_a_sheet_of_its_evaluations_and_no_map_of_attention() -> None:
    sheet, picture = report_sheet(skipping()), drawn(skipping())
    margin = (sheet.width - picture.width) // 2
    bottom = sheet.height - margin
    assert sheet.crop((margin, bottom - picture.height, margin + picture.width, bottom)) == picture
    assert sheet.height - picture.height < 120, "a heading and margins, no map that says nothing was seen"
    both = skipping()
    both.add(Call(Position(1, 0.0, 0, 1), 0.3, None, 100.0, lambda: 1.0))
    assert report_sheet(both).height > sheet.height
