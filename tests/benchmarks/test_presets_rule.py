"""The densities of the schedule presets are what their rule makes of the quality bench's committed tables."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.quality.presets import LIMITS, RESULTS, choose, table, work_for
from draftattention.draftattn_core.run.schedule import PRESET_DENSE_START, PRESET_DENSITY, PRESETS

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"
# A full run counts where there is one.
NAME = "full" if (RESULTS / "captured_full.csv").exists() and (RESULTS / "end_to_end_full.csv").exists() else "quick"


def test_the_presets_follow_from_the_tables() -> None:
    assert {name: choice.density for name, choice in choose(name=NAME).items()} == PRESET_DENSITY


def test_the_docs_show_the_rule_as_it_was_applied() -> None:
    assert table(choose(name=NAME)) in PAGE.read_text(encoding="utf-8")


def test_a_better_preset_asks_for_less_error_and_gets_more_density_and_a_longer_dense_start() -> None:
    assert set(LIMITS) == set(PRESETS)
    for better, worse in (("quality", "balanced"), ("balanced", "fast")):
        assert LIMITS[better][0] < LIMITS[worse][0] and LIMITS[better][1] > LIMITS[worse][1]
        assert PRESET_DENSITY[better] > PRESET_DENSITY[worse]
        assert PRESET_DENSE_START[better] > PRESET_DENSE_START[worse]


def test_work_is_read_between_and_beyond_the_measured_points() -> None:
    errors = [(0.1, 0.2), (0.2, 0.1), (0.4, 0.05)]  # halves as the work doubles
    for limit, work in ((0.2, 0.1), (0.1, 0.2), (0.05, 0.4), (0.1 / math.sqrt(2), 0.2 * math.sqrt(2)), (0.025, 0.8)):
        assert work_for(errors, limit, logarithmic=True) == pytest.approx(work)
    decibels = [(0.1, 20.0), (0.2, 24.0), (0.4, 26.0)]
    for limit, work in ((20.0, 0.1), (22.0, 0.1 * math.sqrt(2)), (25.0, 0.2 * math.sqrt(2)), (28.0, 0.8)):
        assert work_for(decibels, limit, logarithmic=False) == pytest.approx(work)
