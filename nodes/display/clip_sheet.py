"""All frames of a clip in one picture, rows of frames, as the browser gets a clip that it plays."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...draftattn_core.views.charts.clips import Frames

MAX_FRAMES = 121
MAX_PIXELS = 12_000_000
# A small picture (a latent's) is sent as it is; a larger one as JPEG of this quality, colours at full resolution.
MAX_LOSSLESS = 1_000_000
QUALITY = 95


@dataclass(frozen=True)
class ClipSheet:
    """A clip as one encoded picture.

    Attributes:
        data: the picture, PNG or JPEG.
        suffix: of its file's name, "png" or "jpg".
        frames: how many there are in it; columns: how many side by side.
        width, height: of one frame in pixels.
        every: 1 if all of the clip's frames are in it, n if every n-th is.
        shrunk: whether frames are smaller than the clip's.
    """

    data: bytes
    suffix: str
    frames: int
    columns: int
    width: int
    height: int
    every: int
    shrunk: bool

    def told(self) -> dict[str, Any]:
        """What the browser has to know about it, as plain values."""
        names = ("frames", "columns", "width", "height", "every", "shrunk")
        return {name: getattr(self, name) for name in names}


def clip_sheet(clip: Frames, max_frames: int = MAX_FRAMES, max_pixels: int = MAX_PIXELS) -> ClipSheet:
    """Put a clip (F, H, W, 3) uint8 into one picture.

    A longer clip than `max_frames` is thinned out evenly; frames shrink until all have `max_pixels` or fewer.
    """
    every = math.ceil(len(clip) / max_frames)
    kept = clip[::every]
    count, height, width, _ = kept.shape
    scale = min(1.0, math.sqrt(max_pixels / (count * height * width)))
    if scale < 1.0:
        width, height = max(1, int(width * scale)), max(1, int(height * scale))
        kept = np.stack(
            [np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)) for frame in kept]
        )
    # About as wide as high: neither side comes near what decoders refuse.
    columns = min(count, max(1, round(math.sqrt(count * height / width))))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, 3), np.uint8)
    cells[:count] = kept
    sheet = cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    written = io.BytesIO()
    lossless = sheet.shape[0] * sheet.shape[1] <= MAX_LOSSLESS
    if lossless:
        Image.fromarray(sheet).save(written, "PNG", compress_level=1)
    else:
        Image.fromarray(sheet).save(written, "JPEG", quality=QUALITY, subsampling=0)
    suffix = "png" if lossless else "jpg"
    return ClipSheet(written.getvalue(), suffix, count, columns, width, height, every, scale < 1.0)
