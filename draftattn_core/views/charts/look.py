"""How a chart is drawn: its colours on white and on dark ground, how much room it has, how many pixels a unit takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...phrase import Text
from . import canvas
from .canvas import ACCENT, FAINT, INK, LINES, PAPER, RAMP, Colour, font, text_size
from .labels import Label, put_label, take_labels

# What a node of its first width has room for.
NODE_WIDTH = 384


@dataclass(frozen=True)
class Look:
    """Colours and measures of a chart. The first values are those of the pictures that nodes hand on.

    Attributes:
        paper, ink, faint, lines, accent: the ground, text, lesser text, lines, and what is to be noticed.
        unseen: a cell of which nothing is known; skipped: the ground of what was skipped.
        stops: colours from little to much; much stands out from the paper.
        width: of the contents in units; None for as much as they take, with all their words.
        scale: pixels per unit.
        labels: whether words are kept beside the picture (`labels_of`) instead of drawn; numbers and names are drawn.
    """

    paper: Colour = PAPER
    ink: Colour = INK
    faint: Colour = FAINT
    lines: Colour = LINES
    accent: Colour = ACCENT
    unseen: Colour = (246, 247, 249)
    skipped: Colour = (214, 228, 240)
    stops: tuple[Colour, ...] = RAMP
    width: int | None = None
    scale: int = 1
    labels: bool = False

    @property
    def margin(self) -> int:
        return 14 if self.width is None else 8

    def ramp(self, values: NDArray[np.floating], top: float = 1.0) -> NDArray[np.uint8]:
        """See `canvas.ramp`."""
        return canvas.ramp(values, top, self.stops)

    def ramp_colour(self, value: float, top: float = 1.0) -> Colour:
        return canvas.ramp_colour(value, top, self.stops)

    def blank(self, width: float, height: float) -> tuple[Image.Image, Pen]:
        """A new picture of a size in units, and the pen for it."""
        picture, draw = canvas.blank(round(width * self.scale), round(height * self.scale), self.paper)
        return picture, Pen(picture, draw, self)

    def size(self, picture: Image.Image) -> tuple[int, int]:
        """Width and height of a picture in units."""
        return picture.width // self.scale, picture.height // self.scale

    def stack(self, pictures: Sequence[Image.Image], *, gap: int = 12, across: bool = False) -> Image.Image:
        """See `canvas.stack`; the gap is in units."""
        sheet = canvas.stack(pictures, gap=gap * self.scale, across=across, colour=self.paper)
        at = 0
        for picture in pictures:
            take_labels(sheet, picture, (at, 0) if across else (0, at))
            at += (picture.width if across else picture.height) + gap * self.scale
        return sheet

    def framed(self, picture: Image.Image) -> Image.Image:
        """A picture with the margin around it."""
        width, height = self.size(picture)
        larger, pen = self.blank(width + 2 * self.margin, height + 2 * self.margin)
        pen.paste(picture, (self.margin, self.margin))
        return larger

    def colour_bar(self, top: float, height: int, label: str) -> Image.Image:
        """A vertical scale from 0 (below) to `top`, with ticks."""
        bar, pen = self.blank(64, height + 26)
        values = np.linspace(top, 0.0, height)[:, None].repeat(14, axis=1)
        pen.cells(self.ramp(values, top), (2, 20))
        pen.rectangle((1, 19, 16, 20 + height), outline=self.lines)
        pen.write((0, 2), label, size=11, fill=self.faint)
        for part in range(5):
            y = 20 + height - 1 - part * (height - 1) / 4
            pen.line((16, y, 20, y), fill=self.faint)
            pen.write((23, y), f"{top * part / 4:.2f}", size=11, anchor="lm")
        return bar

    def legend(self, entries: Sequence[tuple[Colour, str]], width: int) -> Image.Image:
        """Colours with their labels, in as many rows as they take in `width` units."""
        rows: list[list[tuple[Colour, str, int]]] = [[]]
        used = 0
        for colour, label in entries:
            needed = 20 + text_size(label, 12)[0] + 16
            if self.labels:  # how long a word is in another language is not known here
                needed = -(-width // 2) if needed <= width // 2 else width
            if used and used + needed > width:
                rows.append([])
                used = 0
            rows[-1].append((colour, label, needed))
            used += needed
        picture, pen = self.blank(width, 20 * len(rows) if entries else 1)
        for index, row in enumerate(rows):
            x = 0
            for colour, label, needed in row:
                pen.rectangle((x, 20 * index + 2, x + 13, 20 * index + 15), fill=colour, outline=self.lines)
                pen.write((x + 19, 20 * index + 9), label, size=12, anchor="lm")
                x += needed
        return picture


@dataclass(frozen=True)
class Pen:
    """Draws on a picture, in units from its left upper corner."""

    picture: Image.Image
    draw: ImageDraw.ImageDraw
    look: Look

    def rectangle(
        self, box: tuple[float, float, float, float], fill: Colour | None = None, outline: Colour | None = None
    ) -> None:
        """Left, top, right and bottom are in it, as in PIL."""
        scale = self.look.scale
        left, top = box[0] * scale, box[1] * scale
        right, bottom = box[2] * scale + scale - 1, box[3] * scale + scale - 1
        self.draw.rectangle((left, top, right, bottom), fill=fill, outline=outline, width=scale)

    def line(self, ends: tuple[float, float, float, float], fill: Colour, width: int = 1) -> None:
        scale = self.look.scale
        self.draw.line([place * scale for place in ends], fill=fill, width=width * scale)

    def polygon(self, corners: Sequence[tuple[float, float]], fill: Colour) -> None:
        scale = self.look.scale
        self.draw.polygon([(x * scale, y * scale) for x, y in corners], fill=fill)

    def write(
        self,
        place: tuple[float, float],
        text: str,
        *,
        size: int = 13,
        fill: Colour | None = None,
        anchor: str = "la",
    ) -> None:
        """Text of one line; see `canvas.write`."""
        scale, colour = self.look.scale, fill or self.look.ink
        x, y = place[0] * scale, place[1] * scale
        if self.look.labels and isinstance(text, Text):
            put_label(self.picture, Label(text, x, y, size * scale, anchor, colour))
        else:
            self.draw.text((x, y), text, fill=colour, font=font(size * scale), anchor=anchor)

    def paste(self, part: Image.Image, place: tuple[int, int]) -> None:
        """Put a picture of this look there."""
        at = (place[0] * self.look.scale, place[1] * self.look.scale)
        self.picture.paste(part, at)
        take_labels(self.picture, part, at)

    def cells(self, colours: NDArray[np.uint8], place: tuple[int, int]) -> None:
        """Put (height, width, 3) colours there, one unit each."""
        scale = self.look.scale
        self.paste(Image.fromarray(colours.repeat(scale, axis=0).repeat(scale, axis=1)), place)


LIGHT = Look()
DARK = Look(
    paper=(30, 31, 34),
    ink=(224, 227, 231),
    faint=(152, 159, 168),
    lines=(72, 77, 84),
    accent=(240, 106, 98),
    unseen=(42, 44, 48),
    skipped=(52, 68, 84),
    stops=((38, 52, 92), (36, 104, 150), (60, 162, 176), (150, 212, 190), (236, 247, 238)),
)


def on_node(look: Look) -> Look:
    """The same colours, with what a node has room for, pixels enough for a closer look, and words in any language."""
    return replace(look, width=NODE_WIDTH, scale=2, labels=True)
