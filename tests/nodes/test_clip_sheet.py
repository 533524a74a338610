"""A clip in one picture, as the browser gets it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def sheets(part):
    return part("nodes.display.clip_sheet")


def clip(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


def frame_of(sheet, index: int) -> np.ndarray:
    """Where the browser looks for a frame."""
    x, y = index % sheet.columns * sheet.width, index // sheet.columns * sheet.height
    picture = np.array(Image.open(io.BytesIO(sheet.data)))
    return picture[y : y + sheet.height, x : x + sheet.width]


@pytest.mark.parametrize("shape", [(1, 5, 7), (7, 5, 9), (13, 9, 4), (5, 1, 40)])
def test_every_frame_of_a_small_clip_is_found_bit_for_bit(sheets, shape) -> None:
    frames = clip(*shape)
    sheet = sheets.clip_sheet(frames)
    assert (sheet.frames, sheet.every, sheet.shrunk, sheet.suffix) == (shape[0], 1, False, "png")
    assert all(np.array_equal(frame_of(sheet, index), frame) for index, frame in enumerate(frames))


def test_a_long_clip_is_thinned_out_evenly(sheets) -> None:
    frames = clip(11, 4, 6)
    sheet = sheets.clip_sheet(frames, max_frames=5)
    assert (sheet.frames, sheet.every) == (4, 3)
    assert all(np.array_equal(frame_of(sheet, index), frames[3 * index]) for index in range(4))


def test_a_large_clip_shrinks_into_its_bound_and_keeps_its_shape(sheets) -> None:
    sheet = sheets.clip_sheet(clip(6, 300, 500), max_pixels=90_000)
    assert sheet.shrunk and sheet.frames * sheet.width * sheet.height <= 90_000
    assert sheet.width / sheet.height == pytest.approx(5 / 3, rel=0.02)


def test_a_large_picture_is_sent_as_jpeg(sheets) -> None:
    frames = np.full((2, 800, 800, 3), 90, np.uint8)
    sheet = sheets.clip_sheet(frames)
    assert sheet.suffix == "jpg" and not sheet.shrunk
    assert np.abs(frame_of(sheet, 1).astype(int) - 90).max() <= 2


def test_what_is_told_is_plain_values(sheets) -> None:
    told = sheets.clip_sheet(clip(2, 3, 4)).told()
    assert told == {"frames": 2, "columns": 1, "width": 4, "height": 3, "every": 1, "shrunk": False}
