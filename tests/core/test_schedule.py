"""Schedules: density as a function of progress, layer and head."""

from __future__ import annotations

import pytest

from draftattention.draftattn_core.run.schedule import PRESET_DENSITY, PRESETS, LayerBand, Schedule, constant, preset


def test_a_schedule_is_piecewise_linear_and_flat_outside() -> None:
    schedule = Schedule(((0.2, 0.8), (0.6, 0.4)))
    assert [schedule.curve(x) for x in (0.0, 0.2, 0.6, 1.0)] == [0.8, 0.8, 0.4, 0.4]
    assert schedule.curve(0.3) == pytest.approx(0.7)


def test_two_points_at_one_progress_make_a_step() -> None:
    schedule = constant(0.25, warmup=0.2)
    assert schedule.curve(0.2 - 1e-3) == 1.0
    assert schedule.curve(0.2) == 0.25
    assert schedule.density(0.1, 0, 30) is None
    assert schedule.density(0.2, 0, 30) == 0.25


def test_a_dense_layer_may_be_counted_from_the_end() -> None:
    schedule = constant(0.25).with_dense_layers((0, -1))
    assert [schedule.density(0.5, layer, 4) for layer in range(4)] == [None, 0.25, 0.25, None]
    # Without the number of layers nothing can be counted from the end.
    assert schedule.density(0.5, 3, 0) == 0.25


def test_bands_multiply_the_density_of_their_layers() -> None:
    schedule = Schedule(((0.0, 0.4),), bands=(LayerBand(0, 1, 0.5), LayerBand(-1, -1, 4.0)))
    assert [schedule.density(0.5, layer, 4) for layer in range(4)] == [0.2, 0.2, 0.4, None]


@pytest.mark.parametrize(
    "points", [(), ((0.5, 0.2), (0.4, 0.2)), ((0.0, 1.2),), ((-0.1, 0.5),), ((0.0, float("nan")),), ((1.1, 0.5),)]
)
def test_points_out_of_range_or_order_are_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError):
        Schedule(points)


def test_negative_factors_are_refused() -> None:
    with pytest.raises(ValueError, match="factor"):
        Schedule(bands=(LayerBand(0, 1, -1.0),))


@pytest.mark.parametrize("name", PRESETS)
def test_long_runs_start_dense_and_ramp_down_to_the_target(name: str) -> None:
    schedule = preset(name, 50)
    values = [schedule.curve(step / 50) for step in range(51)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    target = PRESET_DENSITY[name]
    assert values[-1] == values[20] == target
    assert preset(name, 50, 0.4).curve(1.0) == 0.4


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_short_runs_spend_no_whole_step_on_dense(steps: int) -> None:
    schedule = preset("balanced", steps)
    values = [schedule.curve(step / steps) for step in range(steps)]
    assert values == [0.4] + [0.2] * (steps - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("best", 20), "unknown schedule preset 'best'.*quality"),
        (("fast", 0), "at least one step"),
        (("fast", 9, 2.0), "1"),
    ],
)
def test_presets_refuse_what_they_cannot_serve(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset(*arguments)  # type: ignore[arg-type]


def test_a_warmup_is_a_share() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        constant(0.2, warmup=5)


@pytest.mark.parametrize("error", [-1e-6, 0.0, 1e-6])
def test_a_step_that_falls_on_a_point_has_reached_it(error: float) -> None:
    steps = 6
    densities = [preset("balanced", steps).curve(max(0.0, step / steps + error)) for step in range(steps)]
    assert densities == pytest.approx([0.4, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert constant(0.25, warmup=0.15).curve(3 / 20 + error) == pytest.approx(0.25)
    assert constant(0.25, warmup=0.15).curve(2 / 20 + error) == 1.0
