"""The pictures show the numbers they are made from: checked by the colours at known places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from draftattention.draftattn_core import Layout, Policy, Position, RunReport, Schedule, TokenGrid, attend
from draftattention.draftattn_core.run.capture import capture
from draftattention.draftattn_core.run.report import Call, DenseReason
from draftattention.draftattn_core.run.schedule import LayerBand, constant, preset
from draftattention.draftattn_core.views.charts import (
    as_frames,
    block_overlays,
    block_sheet,
    density_map,
    difference,
    error_text,
    even_steps,
    mean_density,
    report_sheet,
    schedule_curve,
    seconds_per_step,
    side_by_side,
    stack,
)
from draftattention.draftattn_core.views.charts.canvas import ACCENT, LINES, on, ramp, ramp_colour, wrapped
from draftattention.draftattn_core.views.charts.curve import AREA, DENSE, dense_stretches, trace
from draftattention.draftattn_core.views.charts.density import (
    REASON_COLOURS,
    cells,
    scale_top,
    tails_per_layer,
)
from draftattention.draftattn_core.views.charts.labels import labels_of
from draftattention.draftattn_core.views.charts.look import LIGHT, on_node


def call(step: int, layer: int, density: float | None, reason: DenseReason | None = None, seconds: float = 0.0) -> Call:
    return Call(Position(step, step / 10, layer, 3), density, reason, 100.0, lambda: seconds)


def colours(picture: Image.Image) -> set[tuple[int, int, int]]:
    return {colour for _, colour in picture.getcolors(1 << 24)}


@pytest.fixture
def report() -> RunReport:
    """3 steps x 2 layers: dense by schedule, sparse, one sparse cell with an error in it, one never seen."""
    made = RunReport()
    made.add(call(0, 0, None, DenseReason.SCHEDULE, 2.0))
    made.add(call(0, 1, None, DenseReason.SCHEDULE, 2.0))
    made.add(call(1, 0, 0.1, None, 0.5))
    made.add(call(1, 0, 0.3, None, 0.5))
    made.add(call(1, 1, 0.2, None, 0.25))
    made.add(call(1, 1, None, DenseReason.ERROR, 2.0))
    made.add(call(2, 0, 0.3, None, 0.5))
    made.add(Call(None, None, DenseReason.CROSS_ATTENTION, 0.0, lambda: 0.0))
    made.finish()
    return made


def test_the_ramp_goes_from_light_to_dark_and_clips() -> None:
    shades = ramp(np.linspace(0, 1, 50)).astype(int) @ np.array([299, 587, 114])
    assert (np.diff(shades) < 0).all()
    assert (ramp(np.array([-1.0, 2.0, np.nan])) == ramp(np.array([0.0, 1.0, 0.0]))).all()
    assert ramp_colour(0.2, top=0.4) == ramp_colour(0.5)
    assert on((0, 0, 0)) == (255, 255, 255)


def test_cells_collect_the_calls_of_a_step_and_layer(report: RunReport) -> None:
    table = cells(report)
    assert (len(table), len(table[0])) == (3, 2)
    assert table[1][0].density == pytest.approx(0.2) and table[1][0].reason is None
    assert table[1][1].density == pytest.approx(0.2) and table[1][1].reason is DenseReason.ERROR
    assert table[0][0].density is None and table[0][0].reason is DenseReason.SCHEDULE
    assert table[2][1].density is None and table[2][1].reason is None
    assert table[1][1].seconds == pytest.approx(2.25)
    assert scale_top(table) == 0.4


def test_an_unexpected_reason_is_shown_before_more_frequent_expected_ones() -> None:
    report = RunReport()
    for _ in range(5):
        report.add(call(0, 0, None, DenseReason.SCHEDULE))
    report.add(call(0, 0, None, DenseReason.OUT_OF_MEMORY))
    assert cells(report)[0][0].reason is DenseReason.OUT_OF_MEMORY


def test_the_density_map_has_a_colour_for_every_kind_of_cell(report: RunReport) -> None:
    found = colours(density_map(report))
    assert {ramp_colour(0.2, 0.4), ramp_colour(0.3, 0.4), LIGHT.unseen} <= found
    assert {REASON_COLOURS[DenseReason.SCHEDULE], REASON_COLOURS[DenseReason.ERROR]} <= found
    assert REASON_COLOURS[DenseReason.MASK] not in found


def test_steps_that_a_cache_answered_have_a_colour_of_their_own_unless_a_part_of_them_was_computed() -> None:
    skipping = RunReport()
    for step in (0, 1, 3):
        skipping.add(call(step, 0, 0.3))
    for step, outcome in enumerate(("computed", "forecast", "forecast", "computed", "forecast")):
        skipping.add_outcome(outcome, step)
    table = cells(skipping)
    assert [row[0].answered for row in table] == [None, "forecast", "forecast", None, "forecast"]
    assert [row[0].density for row in table] == [0.3, 0.3, None, 0.3, None]
    drawn = colours(density_map(skipping))
    assert LIGHT.skipped in drawn and LIGHT.unseen not in drawn


def test_the_density_map_is_steps_wide_and_layers_high() -> None:
    def extent(steps: int, layers: int) -> tuple[int, int]:
        report = RunReport()
        for step in range(steps):
            for layer in range(layers):
                report.add(call(step, layer, None, DenseReason.FEW_TOKENS))
        colour = np.array(REASON_COLOURS[DenseReason.FEW_TOKENS])
        inside = (np.asarray(density_map(report)) == colour).all(-1)
        widest = inside.sum(1).max()
        return int(widest), int(inside.any(1).sum())

    wide, high = extent(12, 3), extent(3, 12)
    assert wide[0] > 2 * high[0] and high[1] > 2 * wide[1]


def test_every_dense_reason_has_a_colour_of_its_own() -> None:
    assert set(REASON_COLOURS) == set(DenseReason)
    assert len(set(REASON_COLOURS.values())) == len(DenseReason)


def test_an_empty_run_gets_a_picture_that_says_so() -> None:
    assert density_map(RunReport()).size[0] > 100
    assert report_sheet(RunReport()).size[0] > 100


def test_the_heading_of_the_tails_is_whole_where_one_tail_was_measured(report: RunReport) -> None:
    tops = []
    for names in (("linear1",), ("none", "mean", "linear0", "linear1", "linear2")):
        report.tail_errors[0] = dict.fromkeys(names, 0.1)
        picture = tails_per_layer(report)
        assert picture is not None
        ink = np.asarray(picture.convert("L"))[:16] < 128
        tops.append(int(np.flatnonzero(ink.any(0)).max()))
    assert tops[0] == tops[1]


def test_the_report_sheet_grows_by_the_parts_the_run_has(report: RunReport) -> None:
    plain = report_sheet(report)
    report.tail_errors[0] = {"mean": 0.31, "linear1": 0.08}
    report.tails[0] = ("linear1", "linear1")
    with_tails = report_sheet(report)
    assert with_tails.height > plain.height
    assert {ramp_colour(0.31, 0.31), ramp_colour(0.08, 0.31)} <= colours(with_tails)
    report.note("something happened")
    assert report_sheet(report).height > with_tails.height
    assert ACCENT in colours(plain)  # the line of an all-dense step


def test_mean_density_counts_dense_steps_layers_and_bands() -> None:
    assert mean_density(constant(0.2), even_steps(10)) == pytest.approx(0.2)
    assert mean_density(constant(0.2, warmup=0.3), even_steps(10)) == pytest.approx(0.3 + 0.7 * 0.2)
    layered = Schedule(((0.0, 0.2),), dense_layers=(0, -1), bands=(LayerBand(1, 1, 2.0),))
    assert mean_density(layered, even_steps(4), layers=4) == pytest.approx((1 + 0.4 + 0.2 + 1) / 4)
    with pytest.raises(ValueError, match="no steps"):
        mean_density(constant(0.2), ())


def test_the_curve_is_as_high_as_the_density() -> None:
    picture = np.asarray(schedule_curve(constant(0.25, warmup=0.5)))
    plot_w, height, left, base = 720 - 52 - 18, 300, 52, 54 + 300
    for progress, density, colour in ((0.2, 1.0, DENSE), (0.8, 0.25, AREA)):
        column = picture[:base, left + round(progress * plot_w)]
        filled = int((column == np.array(colour)).all(-1).sum())
        # The outline, grid lines and the caption cross a few pixels.
        assert abs(filled - density * height) < 12, (progress, filled)


def test_steps_are_marked_where_they_stand() -> None:
    def marks(progress: tuple[float, ...]) -> int:
        return int((np.asarray(schedule_curve(preset("balanced", 20), progress)) == np.array(ACCENT)).all(-1).sum())

    assert marks(()) == 0
    assert marks(even_steps(20)) > 4 * marks(even_steps(4)) > 0


def test_the_line_of_a_curve_goes_straight_up_and_down_at_its_steps() -> None:
    schedule = Schedule(((0.0, 1.0), (0.3, 1.0), (0.3, 0.4), (0.5, 0.2)))
    line = trace(schedule, (0.0, 0.1, 0.4, 1.0))
    expected = [(0.0, 1.0), (0.1, 1.0), (0.3, 1.0), (0.3, 0.4), (0.4, 0.3), (0.5, 0.2), (1.0, 0.2)]
    assert [place for place, _ in line] == [place for place, _ in expected]
    assert [value for _, value in line] == pytest.approx([value for _, value in expected])


def test_small_errors_keep_a_digit() -> None:
    assert [error_text(value) for value in (0.1234, 0.0, 6.4e-5)] == ["0.123", "0.000", "6e-05"]


def bars(picture: Image.Image) -> Image.Image:
    """`seconds_per_step` without its key."""
    return picture.crop((0, 0, picture.width, 140))


def test_the_bars_of_seconds_per_step_have_a_key_to_those_that_occur() -> None:
    run = RunReport()
    run.add(call(0, 0, None, DenseReason.SCHEDULE, 1.0))
    dense, sparse, model = "chart_attention_dense", "chart_attention_sparse", "chart_whole_model"

    def key() -> list[str]:
        said = [getattr(label.text, "key", "") for label in labels_of(seconds_per_step(run, 384, on_node(LIGHT)))]
        return [name for name in said if name in (dense, sparse, model)]

    assert key() == [dense]
    run.add(call(1, 0, 0.2, None, 0.5))
    assert key() == [sparse, dense]
    run.add_evaluation(0, lambda: 2.0)
    assert key() == [sparse, dense, model]


def test_seconds_per_step_show_the_whole_model_where_it_is_known() -> None:
    run = RunReport()
    run.add(call(0, 0, None, DenseReason.SCHEDULE, 1.0))
    run.add(call(1, 0, 0.2, None, 0.5))
    assert LINES not in colours(bars(seconds_per_step(run)))
    for step, seconds in ((0, 2.0), (1, 1.5)):
        run.add_evaluation(step, lambda seconds=seconds: seconds)
    picture = np.asarray(bars(seconds_per_step(run)))
    light, dark = ((picture == colour).all(-1).sum(0).max() for colour in (LINES, REASON_COLOURS[DenseReason.SCHEDULE]))
    assert abs(int(light) - int(dark)) <= 4, "at the dense step attention is half of the model's time"


@pytest.mark.parametrize("whole", [1.0, 1.04, 2.0])
def test_words_at_lines_that_are_near_each_other_stand_apart(whole: float) -> None:
    run = RunReport()
    run.add(call(0, 0, None, DenseReason.SCHEDULE, 1.0))
    run.add_evaluation(0, lambda: whole)
    labels = {getattr(label.text, "key", ""): label for label in labels_of(seconds_per_step(run, 384, on_node(LIGHT)))}
    attention, step = labels["chart_all_dense"], labels["chart_dense_step"]
    assert attention.y - step.y >= 1.15 * step.size, "the longer time stands above"


def test_dense_stretches() -> None:
    assert dense_stretches([1.0, 1.0, 0.5, 1.0]) == [(0, 1), (3, 3)]
    assert dense_stretches([0.2]) == []


@pytest.fixture
def captured():
    layout = Layout(TokenGrid(3, 6, 10), q_block=16, k_block=16)
    q, k, v = (torch.randn(1, 2, layout.tokens, 8) for _ in range(3))
    return capture(attend(q, k, v, layout, Policy(0.3)), Position(0, 0.0, 0, 1))


def test_overlays_brighten_kept_tokens_and_outline_the_query(captured) -> None:
    block = captured.query_block(0.5, 0.5, 0.5)
    frames = np.full((3, 6, 10, 3), 200, dtype=np.uint8)
    heat, kept = block_overlays(captured, 1, block, frames, scale=8)
    assert heat.shape == kept.shape == (3, 48, 80, 3)
    draft, keep, query = (volume.numpy() for volume in captured.per_token(1, block))
    centres = kept[:, 4::8, 4::8].astype(int).sum(-1)
    assert centres[keep].min() > 2 * centres[~keep].max()
    hottest = np.unravel_index((draft * ~query).argmax(), draft.shape)
    coldest = np.unravel_index((draft + 9 * query).argmin(), draft.shape)
    assert heat[:, 4::8, 4::8, 0][hottest] > heat[:, 4::8, 4::8, 0][coldest] + 50
    red = (kept == np.array(ACCENT)).all(-1)
    assert red.any((1, 2)).tolist() == query.any((1, 2)).tolist()
    assert not (red & ~query.repeat(8, 1).repeat(8, 2)).any()


def test_the_block_sheet_shows_the_frame_of_its_query_even_between_the_shown_ones(captured) -> None:
    frames = np.full((1, 6, 10, 3), 200, dtype=np.uint8)
    red = [
        int(
            (np.asarray(block_sheet(captured, 0, captured.query_block(t, 0.5, 0.5), frames, columns=2)) == ACCENT)
            .all(-1)
            .sum()
        )
        for t in (0.0, 0.5, 1.0)
    ]
    assert min(red) > 100


def test_side_by_side_keeps_pixels_and_makes_even_sizes() -> None:
    a = np.random.default_rng(0).integers(0, 256, (2, 9, 13, 3), dtype=np.uint8)
    b = 255 - a
    joined = side_by_side([a, b], ["dense", "ours\n31.2 dB"], scale=3)
    assert joined.shape[0] == 2 and joined.shape[1] % 2 == 0 and joined.shape[2] % 2 == 0
    bar = 8 + 17 * 2
    assert (joined[1, bar : bar + 27 : 3, 0:39:3] == a[1]).all()
    right = joined[1, bar : bar + 27 : 3]
    assert any((right[:, x : x + 39 : 3] == b[1]).all() for x in range(39, joined.shape[2] - 38))
    with pytest.raises(ValueError, match="shape"):
        side_by_side([a, b[:1]], ["a", "b"])
    with pytest.raises(ValueError, match="labels"):
        side_by_side([a], [])


def test_frames_and_differences() -> None:
    clip = np.array([-0.5, 0.0, 0.5, 2.0, np.nan]).reshape(1, 1, 5, 1)
    assert as_frames(clip)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 0]
    assert as_frames(clip).shape[-1] == 3
    a, b = np.full((1, 1, 1, 3), 100, dtype=np.uint8), np.full((1, 1, 1, 3), 110, dtype=np.uint8)
    assert difference(a, b).max() == difference(b, a).max() == 40


def test_stack_and_wrap() -> None:
    one, two = Image.new("RGB", (10, 20)), Image.new("RGB", (30, 5))
    assert stack([one, two], gap=2).size == (30, 27) and stack([one, two], gap=2, across=True).size == (42, 20)
    with pytest.raises(ValueError, match="no pictures"):
        stack([])
    assert wrapped("a b\nc", 1000) == ["a b", "c"] and len(wrapped("word " * 50, 200)) > 3
