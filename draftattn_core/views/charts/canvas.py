"""What all charts share: fonts, colours, text, and joining pictures. PIL and numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK: Colour = (34, 40, 49)
FAINT: Colour = (120, 128, 138)
LINES: Colour = (214, 218, 224)
PAPER: Colour = (255, 255, 255)
ACCENT: Colour = (214, 69, 65)

# Light to dark, so that it also reads in print and without colour vision: little computed is light, much is dark.
RAMP: tuple[Colour, ...] = ((232, 244, 234), (153, 213, 190), (64, 166, 178), (33, 102, 157), (27, 38, 99))


@lru_cache(maxsize=8)
def font(size: int = 13) -> Font:
    """PIL's own font; the small bitmap one where PIL is older than 10.1 or lacks FreeType."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):
        return ImageFont.load_default()


def ramp(values: NDArray[np.floating], top: float = 1.0, colours: Sequence[Colour] = RAMP) -> NDArray[np.uint8]:
    """Colours (..., 3) of values (...), from the first of `colours` for 0 to the last for `top`; others are clipped."""
    stops = np.array(colours, dtype=np.float64)
    place = np.clip(np.nan_to_num(values) / max(top, 1e-12), 0.0, 1.0) * (len(stops) - 1)
    below = np.minimum(place.astype(int), len(stops) - 2)
    share = (place - below)[..., None]
    mixed: NDArray[np.uint8] = np.rint(stops[below] * (1 - share) + stops[below + 1] * share).astype(np.uint8)
    return mixed


def ramp_colour(value: float, top: float = 1.0, colours: Sequence[Colour] = RAMP) -> Colour:
    r, g, b = ramp(np.array(value, dtype=np.float64), top, colours).tolist()
    return (r, g, b)


def on(colour: Colour) -> Colour:
    """Ink that can be read on `colour`."""
    r, g, b = colour
    return INK if 0.299 * r + 0.587 * g + 0.114 * b > 140 else PAPER


def text_size(text: str, size: int = 13) -> tuple[int, int]:
    """Width and height in pixels of (possibly several lines of) text."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox(
        (0, 0), text, font=font(size)
    )
    return int(np.ceil(right - min(left, 0))), int(np.ceil(bottom - min(top, 0)))


def write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    *,
    size: int = 13,
    fill: Colour = INK,
    anchor: str = "la",
) -> None:
    """Text of one line at `place`; `anchor` as in PIL ("mm" centres, "ra" right-aligns)."""
    draw.text(place, text, fill=fill, font=font(size), anchor=anchor)


def wrapped(text: str, width: int, size: int = 13) -> list[str]:
    """Lines of `text` no wider than `width` pixels, broken at spaces; existing line ends stay."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and text_size(longer, size)[0] > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def blank(width: int, height: int, colour: Colour = PAPER) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A new picture and the pen for it."""
    picture = Image.new("RGB", (max(1, width), max(1, height)), colour)
    return picture, ImageDraw.Draw(picture)


def stack(
    pictures: Sequence[Image.Image], *, gap: int = 12, across: bool = False, colour: Colour = PAPER
) -> Image.Image:
    """Pictures below each other (or beside each other), left- or top-aligned on white or another colour.

    Raises:
        ValueError: if there are none.
    """
    if not pictures:
        raise ValueError("there are no pictures to put together")
    sizes = [picture.size for picture in pictures]
    if across:
        width, height = sum(w for w, _ in sizes) + gap * (len(sizes) - 1), max(h for _, h in sizes)
    else:
        width, height = max(w for w, _ in sizes), sum(h for _, h in sizes) + gap * (len(sizes) - 1)
    sheet, _ = blank(width, height, colour)
    at = 0
    for picture in pictures:
        sheet.paste(picture, (at, 0) if across else (0, at))
        at += (picture.width if across else picture.height) + gap
    return sheet
