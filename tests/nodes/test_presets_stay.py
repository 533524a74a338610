"""What presets and speeds mean today, in numbers: saved graphs name them, so a change of meaning is to be seen here."""

from __future__ import annotations

import pytest

LONG, SHORT = 80_000, 30_000


@pytest.fixture
def presets(part):
    return part("nodes.inputs.presets")


def few(density: float, steps: int) -> tuple[tuple[float, float], ...]:
    """Partly sparse for the first step, then the density."""
    return ((0.0, 2 * density), (1 / steps, 2 * density), (1 / steps, density))


def many(density: float, dense: float) -> tuple[tuple[float, float], ...]:
    """Dense, then down from twice the density within a tenth of the run."""
    return ((0.0, 1.0), (dense, 1.0), (dense, 2 * density), (dense + 0.1, density))


def paper(density: float) -> tuple[tuple[float, float], ...]:
    return ((0.0, 1.0), (0.25, 1.0), (0.25, density))


@pytest.mark.parametrize(
    ("preset", "steps", "tokens", "curve"),
    [
        ("auto", 4, LONG, few(0.40, 4)),
        ("auto", 8, LONG, few(0.30, 8)),
        ("auto", 12, LONG, many(0.30, 0.10)),
        ("auto", 13, LONG, many(0.20, 0.10)),
        ("auto", 20, LONG, many(0.20, 0.10)),
        ("auto", 50, 60_000, many(0.20, 0.10)),
        ("auto", 50, 59_999, many(0.30, 0.10)),
        ("auto", 20, SHORT, many(0.30, 0.10)),
        ("quality", 4, SHORT, few(0.30, 4)),
        ("quality", 8, LONG, few(0.30, 8)),
        ("quality", 20, LONG, many(0.30, 0.15)),
        ("balanced", 8, LONG, few(0.20, 8)),
        ("balanced", 20, SHORT, many(0.20, 0.10)),
        ("balanced", 50, LONG, many(0.20, 0.10)),
        ("fast", 8, LONG, few(0.15, 8)),
        ("fast", 20, LONG, many(0.15, 0.05)),
        ("fast", 50, SHORT, many(0.15, 0.05)),
        ("paper", 8, LONG, ((0.0, 0.25),)),
        ("paper", 20, SHORT, paper(0.25)),
        ("paper", 50, LONG, paper(0.25)),
    ],
)
def test_a_preset_keeps_its_densities(presets, preset: str, steps: int, tokens: int, curve) -> None:
    settings = presets.Choices(preset=preset).settings(steps, tokens)
    schedule = settings.schedule
    assert [*sum(schedule.points, ())] == pytest.approx([*sum(curve, ())])
    assert (schedule.dense_layers, schedule.bands, schedule.first_dense) == ((), (), 0.0)
    assert settings.skip.rule == "off" and settings.budgets == "off"


@pytest.mark.parametrize(
    ("steps", "computed"), [(8, (4, 4, 4, 4)), (10, (4, 5, 4, 4)), (20, (8, 10, 8, 5)), (50, (20, 25, 20, 12))]
)
def test_a_speed_computes_so_many_steps_of_a_sampler(presets, steps: int, computed: tuple[int, ...]) -> None:
    names = ("quality", "balanced", "fast", "max")
    # A sampler that runs half of the trajectory plans its own steps.
    for whole in (steps, 2 * steps):
        skips = [presets.Choices(speed=name).settings(whole, LONG).skip for name in names]
        assert {skip.rule for skip in skips} == {"spread"}
        assert tuple(len(skip.planned_steps(steps)) for skip in skips) == computed
