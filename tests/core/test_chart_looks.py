"""Charts are drawn on white and on dark ground, as wide as a node or with all their words, by the same code."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from draftattention.draftattn_core import RunReport
from draftattention.draftattn_core.phrase import Foreign, Phrase
from draftattention.draftattn_core.run.report import Call, DenseReason, Position
from draftattention.draftattn_core.views.charts import report_sheet
from draftattention.draftattn_core.views.charts.budgets import budget_map
from draftattention.draftattn_core.views.charts.canvas import text_size
from draftattention.draftattn_core.views.charts.labels import Label, labels_of
from draftattention.draftattn_core.views.charts.look import DARK, LIGHT, NODE_WIDTH, Look, on_node
from tests.core.test_chart_evaluations import skipping

Draw = Callable[[Look], Image.Image]


def run(steps: int, layers: int) -> RunReport:
    """Skipped evaluations, measured tails, a note, and calls of which the first step's are dense."""
    report = skipping()
    for step in range(steps):
        for layer in range(layers):
            density, reason = (0.2, None) if step else (None, DenseReason.SCHEDULE)
            report.add(Call(Position(step, step / steps, layer, layers), density, reason, 100.0, lambda: 0.5))
    report.tail_errors = dict.fromkeys(range(layers), {"none": 0.4, "mean": 0.3, "linear1": 0.1})
    report.note(Foreign("a note that stands beside the picture where there is one"))
    return report


def sheet(steps: int, layers: int) -> Draw:
    return lambda look: report_sheet(run(steps, layers), look=look)


def budgets(layers: int, heads: int) -> Draw:
    table = np.random.default_rng(0).random((3, layers, heads))
    return lambda look: budget_map({"high": table, "low": table}, look)


DRAWN = pytest.mark.parametrize("draw", [sheet(5, 3), sheet(50, 40), budgets(3, 4), budgets(60, 40)])


def share(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((np.asarray(picture) == colour).all(-1).mean())


@DRAWN
def test_the_ground_is_that_of_the_look(draw: Draw) -> None:
    for look, other in ((LIGHT, DARK), (DARK, LIGHT)):
        drawn = draw(look)
        assert share(drawn, look.paper) > 0.3
        assert share(drawn, other.paper) < 0.001, "nothing of the other ground is left"
    assert draw(LIGHT).size == draw(DARK).size


@DRAWN
def test_on_a_node_it_is_as_wide_as_the_node_with_two_pixels_a_unit(draw: Draw) -> None:
    for look in (on_node(LIGHT), on_node(DARK)):
        wide = draw(look).width / look.scale
        assert look.scale == 2 and wide <= NODE_WIDTH + 2 * look.margin


def test_nothing_is_cut_off_at_the_edge() -> None:
    look = on_node(DARK)
    for draw in (sheet(5, 3), sheet(50, 40), budgets(60, 40)):
        edge = np.asarray(draw(look))[:, -2:]
        assert (edge == DARK.paper).all()


@DRAWN
def test_on_a_node_words_stand_beside_the_picture_at_their_places_and_numbers_in_it(draw: Draw) -> None:
    drawn, other = draw(on_node(LIGHT)), draw(on_node(DARK))
    labels = labels_of(drawn)
    assert [(one.text, one.x, one.y) for one in labels] == [(one.text, one.x, one.y) for one in labels_of(other)]
    assert {one.fill for one in labels} <= {LIGHT.ink, LIGHT.faint, LIGHT.accent}
    keys = {one.text.key for one in labels if isinstance(one.text, Phrase)}
    assert len(labels) > 8 and {"chart_density"} < keys and not any(one.text.isdecimal() for one in labels)
    for one in labels:
        assert 0 <= one.x < drawn.width and 0 <= one.y < drawn.height
    assert labels_of(draw(LIGHT)) == (), "the pictures that nodes hand on have their words in them"


@DRAWN
def test_labels_leave_each_other_room(draw: Draw) -> None:
    def box(label: Label) -> tuple[float, float, float, float]:
        width, height = text_size(label.text, round(label.size))
        left = label.x - {"l": 0.0, "m": 0.5, "r": 1.0}[label.anchor[0]] * width
        top = label.y - {"a": 0.0, "m": 0.5}[label.anchor[1]] * height
        return left, top, left + width, top + height

    boxes = [box(one) for one in labels_of(draw(on_node(LIGHT)))]
    for (left, top, right, bottom), other in itertools.combinations(boxes, 2):
        assert right <= other[0] or other[2] <= left or bottom <= other[1] + 2 or other[3] <= top + 2


def test_much_stands_out_from_the_ground() -> None:
    for look in (LIGHT, DARK):
        far = [sum(abs(a - b) for a, b in zip(look.ramp_colour(x), look.paper, strict=True)) for x in (0, 0.5, 1)]
        assert far == sorted(far) and far[0] > 20


def test_words_can_be_read_on_their_ground() -> None:
    """Contrast as WCAG 2 defines it: 4.5 for text, 3 for what is large or no text."""

    def luminance(colour: tuple[int, int, int]) -> float:
        parts = [value / 255 for value in colour]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for look in (LIGHT, DARK):
        for colour, least in ((look.ink, 7.0), (look.faint, 3.0), (look.accent, 4.0)):
            dark, light = sorted((luminance(colour), luminance(look.paper)))
            assert (light + 0.05) / (dark + 0.05) >= least
