"""Clips side by side, frame by frame, each under its label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .canvas import FAINT, INK, blank, text_size, write

Frames = NDArray[np.uint8]


def as_frames(clip: NDArray[np.floating]) -> Frames:
    """Float clip (F, H, W, 3) in 0..1 -> uint8; one channel is repeated, a fourth left out."""
    channels = clip[..., :3] if clip.shape[-1] >= 3 else clip[..., :1].repeat(3, axis=-1)
    frames: Frames = np.rint(np.clip(np.nan_to_num(channels), 0.0, 1.0) * 255).astype(np.uint8)
    return frames


def difference(a: Frames, b: Frames, gain: float = 4.0) -> Frames:
    """|a - b| times `gain` on black: where two clips differ."""
    return np.clip(np.abs(a.astype(np.float64) - b) * gain, 0, 255).astype(np.uint8)


def side_by_side(clips: Sequence[Frames], labels: Sequence[str], *, scale: int = 1, gap: int = 8) -> Frames:
    """Clips (F, h, w, 3) uint8 of one shape next to each other, labels (one or two lines) above: (F, H, W, 3).

    Width and height come out even, as video encoders want them.

    Raises:
        ValueError: if there are no clips, their shapes differ, or the labels do not match them.
    """
    if not clips or len(clips) != len(labels):
        raise ValueError(f"as many labels as clips are needed, got {len(labels)} and {len(clips)}")
    if len({clip.shape for clip in clips}) > 1:
        raise ValueError("the clips differ in shape: " + ", ".join(str(clip.shape) for clip in clips))
    frames, height, width, _ = clips[0].shape
    height, width = height * scale, width * scale
    lines = [label.split("\n") for label in labels]
    bar = 8 + 17 * max(len(text) for text in lines)
    columns = [max(width, *(text_size(line, 13)[0] for line in text)) for text in lines]
    total_w, total_h = sum(columns) + gap * (len(clips) - 1), bar + height
    sheet, pen = blank(total_w + total_w % 2, total_h + total_h % 2)
    starts = [sum(columns[:i]) + gap * i for i in range(len(clips))]
    for x, text in zip(starts, lines, strict=True):
        for row, line in enumerate(text):
            write(pen, (x, 4 + 17 * row), line, size=13, fill=FAINT if row else INK)
    empty = np.asarray(sheet)
    result = np.repeat(empty[None], frames, axis=0)
    for x, clip in zip(starts, clips, strict=True):
        for index in range(frames):
            frame = Image.fromarray(clip[index])
            if scale != 1:
                frame = frame.resize((width, height), Image.Resampling.NEAREST)
            result[index, bar : bar + height, x : x + width] = np.asarray(frame)
    return result
