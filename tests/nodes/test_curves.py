"""Curves as users write them."""

from __future__ import annotations

import pytest


@pytest.fixture
def curves(part):
    return part("nodes.inputs.curves")


def test_points_are_progress_and_density(curves) -> None:
    assert curves.parse_points("0:1, 0.15:1; .15:0.4\n0.25:0.2") == ((0, 1), (0.15, 1), (0.15, 0.4), (0.25, 0.2))


@pytest.mark.parametrize("text", ["", "0.5", "0:a", "0:1:2", "0=1"])
def test_unreadable_points_are_answered_with_an_example(curves, text: str) -> None:
    with pytest.raises(ValueError, match="for example"):
        curves.parse_points(text)


def test_bands_count_from_either_end(curves) -> None:
    found = curves.parse_bands("10-20:1.5, -8..-1:2, 3:.5")
    assert [(band.first, band.last, band.factor) for band in found] == [(10, 20, 1.5), (-8, -1, 2.0), (3, 3, 0.5)]
    assert curves.parse_bands(" ") == ()
    with pytest.raises(ValueError, match="for example"):
        curves.parse_bands("10-20")


def test_a_curve_fits_itself_to_the_number_of_steps(curves) -> None:
    curve = curves.SparsityCurve("balanced")
    assert curve.resolve(20).curve(0.0) == 1.0
    assert curve.resolve(4).curve(0.0) == pytest.approx(2 * curve.resolve(4).curve(0.9))
    assert curves.SparsityCurve("balanced", density=0.33).resolve(20).curve(0.9) == pytest.approx(0.33)


def test_layers_reach_the_schedule(curves) -> None:
    curve = curves.SparsityCurve("fast", dense_layers=(0, -1), bands=curves.parse_bands("5-6:2"))
    schedule = curve.resolve(30)
    assert schedule.density(0.9, 0, 8) is None and schedule.density(0.9, 7, 8) is None
    assert schedule.density(0.9, 5, 8) == pytest.approx(2 * schedule.density(0.9, 4, 8))


def test_the_end_raises_the_density_and_never_lowers_it(curves) -> None:
    curve = curves.SparsityCurve("balanced", end_share=0.1, end_density=0.5).resolve(20)
    assert [curve.curve(x) for x in (0.05, 0.5, 0.899, 0.9, 1.0)] == pytest.approx([1.0, 0.2, 0.2, 0.5, 0.5])
    lower = curves.SparsityCurve("custom points", points=((0.0, 0.6), (1.0, 0.6)), end_share=0.5, end_density=0.3)
    assert lower.resolve(20).curve(0.8) == pytest.approx(0.6)
    whole = curves.SparsityCurve("fast", end_share=1.0, end_density=0.7).resolve(20)
    assert whole.curve(0.0) == 1.0 and whole.curve(0.5) == pytest.approx(0.7)


def test_a_point_inside_the_end_keeps_its_place(curves) -> None:
    curve = curves.SparsityCurve("custom points", points=((0, 0.2), (0.9, 0.2), (1, 1)), end_share=0.2, end_density=0.4)
    assert [curve.resolve(9).curve(x) for x in (0.79, 0.8, 0.9, 1.0)] == pytest.approx([0.2, 0.4, 0.4, 1.0])


@pytest.mark.parametrize(
    "wrong",
    [{"curve": "steep"}, {"density": 1.5}, {"curve": "custom points", "points": ((0.5, 0.2), (0.1, 0.2))}],
)
def test_wrong_values_are_refused_when_the_node_runs_not_while_sampling(curves, wrong) -> None:
    with pytest.raises(ValueError):
        curves.SparsityCurve(**wrong)


def test_the_curve_is_what_apply_accepts(part, curves) -> None:
    presets = part("nodes.inputs.presets")
    curve = curves.SparsityCurve("quality", dense_layers=(2,))
    assert isinstance(curve, presets.ScheduleSpec)
    settings = presets.Choices(schedule=curve, dense_layers=(0,)).settings(steps=20, tokens=30_000)
    assert settings.schedule == curve.resolve(20)


class Drawn:
    """A curve as ComfyUI hands it on."""

    def __init__(self, points, bent=False) -> None:
        self.points, self.bent = points, bent

    def interp(self, x: float) -> float:
        (x0, y0), (x1, y1) = next(pair for pair in zip(self.points, self.points[1:]) if pair[1][0] >= x)
        share = (x - x0) / (x1 - x0)
        return y0 + (y1 - y0) * (share * share if self.bent else share)


def test_a_drawn_curve_of_straight_lines_keeps_its_points(curves) -> None:
    assert curves.drawn_points(Drawn([(0.0, 1.0), (0.25, 0.5), (1.0, 0.1)])) == ((0.0, 1.0), (0.25, 0.5), (1.0, 0.1))


def test_a_bent_curve_is_followed_closely(curves) -> None:
    drawn = Drawn([(0.0, 1.0), (0.31, 0.5), (1.0, 0.1)], bent=True)
    schedule = curves.SparsityCurve("custom points", points=curves.drawn_points(drawn)).resolve(20)
    places = [step / 200 for step in range(201)]
    assert [schedule.curve(x) for x in places] == pytest.approx([drawn.interp(x) for x in places], abs=2e-3)


def test_a_drawn_curve_stays_within_bounds_and_needs_points(curves) -> None:
    assert curves.drawn_points(Drawn([(-0.5, 1.5), (2.0, -0.25)])) == ((0.0, 1.0), (1.0, 0.0))
    with pytest.raises(ValueError, match="drawn_curve: the curve has no points"):
        curves.drawn_points(Drawn([]))
