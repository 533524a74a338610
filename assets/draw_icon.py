"""Draws icon.png: a draft map in which the bright blocks are computed and the faint ones live on as a tail."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw

SIZE, SCALE, CELLS = 400, 4, 6
BACKGROUND, FAINT, BRIGHT = (22, 24, 35), (58, 66, 96), (255, 176, 59)
KEPT = {(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (1, 0), (2, 3), (4, 1), (0, 4), (5, 3)}


def mix(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b))


def draw() -> Image.Image:
    side = SIZE * SCALE
    image = Image.new("RGB", (side, side), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    margin, gap = side * 0.10, side * 0.02
    cell = (side - 2 * margin + gap) / CELLS
    for row in range(CELLS):
        for column in range(CELLS):
            nearness = math.exp(-((row - column) ** 2) / 9)
            colour = BRIGHT if (row, column) in KEPT else mix(BACKGROUND, FAINT, 0.25 + 0.75 * nearness)
            left, top = margin + column * cell, margin + row * cell
            box = (left, top, left + cell - gap, top + cell - gap)
            canvas.rounded_rectangle(box, radius=cell * 0.18, fill=colour)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw().save(Path(__file__).with_name("icon.png"), optimize=True)
