"""Contact sheets of sampled videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def contact_sheet(videos: list[np.ndarray], labels: list[str], path: Path, *, frames: int = 9, scale: int = 3) -> None:
    """Write a PNG: one row per video (uint8, T x H x W x 3) with its label and up to `frames` of its frames."""
    gap, margin = 4, 90
    rows = [video[np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)] for video in videos]
    heights = [scale * row.shape[1] for row in rows]
    width = margin + max(len(row) * (scale * row.shape[2] + gap) for row in rows)
    sheet = Image.new("RGB", (width, sum(heights) + gap * (len(rows) + 1)), "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for row, label, height in zip(rows, labels, heights, strict=True):
        draw.text((6, top + height // 2 - 6), label, fill="black")
        for column, frame in enumerate(row):
            picture = Image.fromarray(frame).resize((scale * frame.shape[1], height), Image.Resampling.NEAREST)
            sheet.paste(picture, (margin + column * (picture.width + gap), top))
        top += height + gap
    sheet.save(path, optimize=True)
