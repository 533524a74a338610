"""What is wrong with the texts in widgets: each answer names the input and says what to write."""

from __future__ import annotations

import pytest


@pytest.fixture
def checks(part):
    return part("nodes.inputs.checks")


@pytest.mark.parametrize(
    ("tile", "blocks", "remedy"),
    [
        ("4x4", "128/64", 'write for example "4x4x8"'),
        ("4x4x4", "128/64", "holds 64 tokens but the larger block has 128"),
        ("4x4x8", "64/64", "holds 128 tokens but the larger block has 64"),
        ("3x3x3", None, "but the larger block has 64 or 128"),
        ("0x8x16", "128/128", "holds 0 tokens"),
        ("1x8x16" * 1000, "128/128", "write at most 4000"),
    ],
)
def test_a_tile_that_is_no_block_is_refused(checks, tile: str, blocks: str | None, remedy: str) -> None:
    found = checks.apply_problems(tile, blocks, "")
    assert list(found) == ["tile"] and found["tile"].startswith("tile: ") and remedy in found["tile"]


@pytest.mark.parametrize(
    ("tile", "blocks"), [("auto", "64/64"), ("", "128/64"), ("4x4x8", "128/128"), ("4x4x4", "64/64"), ("4x4x4", None)]
)
def test_a_tile_that_fits_passes(checks, tile: str, blocks: str | None) -> None:
    assert checks.apply_problems(tile, blocks, "0, -1") == {}


@pytest.mark.parametrize("text", ["first", "3-1", "0-99999999999", "2000"])
def test_dense_layers_that_are_none_are_refused_on_both_nodes(checks, text: str) -> None:
    for found in (checks.apply_problems("auto", "128/64", text), checks.scheduler_problems("fast", "", "", text)):
        assert list(found) == ["dense_layers"] and found["dense_layers"].startswith("dense layers: ")
        assert "write" in found["dense_layers"]


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ("0:1, x", "is not progress:density"),
        ("", "at least one progress:density"),
        ("0.5:1, 0.2:0.5", "must ascend"),
        ("0:1.5", "density must lie between 0 and 1"),
        ("0:nan", "density must lie between 0 and 1"),
    ],
)
def test_points_are_refused_where_they_count(checks, points: str, problem: str) -> None:
    found = checks.scheduler_problems("custom points", points, "", "")
    assert list(found) == ["points"] and found["points"].startswith("points: ") and problem in found["points"]
    assert checks.scheduler_problems("balanced", points, "", "") == {}, "another curve does not read them"
    assert checks.scheduler_problems(None, points, "", "") == {}, "the curve is not known yet"


@pytest.mark.parametrize("text", ["10-20", "20-10:2", "-1..-8:2", "a:1", "1:-2"])
def test_layer_bands_that_are_none_are_refused(checks, text: str) -> None:
    found = checks.scheduler_problems("fast", "", text, "")
    assert list(found) == ["layer_bands"] and found["layer_bands"].startswith("layer bands: ")


def test_a_choice_that_is_not_offered_is_refused(checks) -> None:
    assert "choose one" in checks.apply_problems("auto", "32/32", "")["blocks"]
    assert "choose one" in checks.scheduler_problems("steep")["curve"]


@pytest.mark.parametrize("prefix", ["../report", "/tmp/report", "a/../../b", "C:\\report", "\\\\server\\share\\x"])
def test_a_report_stays_in_the_output_folder(checks, prefix: str) -> None:
    assert "inside it" in checks.report_problems(prefix)["filename_prefix"]
    assert checks.report_problems("draft_attention/report") == {}


@pytest.mark.parametrize("name", ["", "../model", "a/b", "con", "x" * 300])
def test_a_profile_needs_a_plain_name(checks, name: str) -> None:
    assert list(checks.calibrate_problems(name, "main")) == ["name"]
    assert checks.calibrate_problems("my model", "main") == {}


def test_an_expert_needs_a_plain_name(checks) -> None:
    assert "choose another one" in checks.calibrate_problems("my model", "high/low")["expert"]


@pytest.mark.parametrize(("start", "end"), [(0.8, 0.2), (0.5, 0.5), (-1.0, 0.5), (0.2, 2.0), (1.0, None), (None, 0.0)])
def test_a_part_of_the_denoising_has_its_start_before_its_end(checks, start: float | None, end: float | None) -> None:
    found = checks.skip_problems(start, end)
    assert list(found) == ["start"] and isinstance(found["start"], checks.Words)
    assert found["start"].startswith("start: from ") and "write two numbers from 0 to 1" in found["start"]
    assert checks.skip_problems(0.2, 0.8) == checks.skip_problems(0.0, 1.0) == checks.skip_problems(0.4, None) == {}


def test_what_is_not_known_yet_is_not_judged(checks) -> None:
    assert (
        checks.apply_problems()
        == checks.scheduler_problems()
        == checks.report_problems()
        == checks.calibrate_problems()
        == checks.skip_problems()
        == {}
    )


def test_everything_that_is_wrong_is_said_at_once(checks) -> None:
    assert checks.judgement({}) is True
    said = checks.judgement(checks.apply_problems("4", "128/64", "x"))
    assert isinstance(said, str) and "tile: " in said and "dense layers: " in said
