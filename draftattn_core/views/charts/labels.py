"""Labels: words of a picture that are kept beside it instead of drawn, for whoever shows it in another language."""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import Image

from ...phrase import Text
from .canvas import Colour

_KEY = "draftattention_labels"


@dataclass(frozen=True)
class Label:
    """Words of one line.

    Attributes:
        text: what they say.
        x, y: their place, in pixels from the left upper corner of the picture.
        size: of the letters in pixels.
        anchor: which point of the words stands there, as in PIL ("la", "mm", "rm").
        fill: their colour.
    """

    text: Text
    x: float
    y: float
    size: float
    anchor: str
    fill: Colour


def labels_of(picture: Image.Image) -> tuple[Label, ...]:
    """Those of a picture, in the order in which they were written."""
    found: tuple[Label, ...] = picture.info.get(_KEY, ())
    return found


def put_label(picture: Image.Image, label: Label) -> None:
    """Keep words beside a picture."""
    picture.info[_KEY] = (*labels_of(picture), label)


def take_labels(picture: Image.Image, part: Image.Image, place: tuple[int, int]) -> None:
    """Keep those of a part that was pasted into a picture; `place` in pixels."""
    for label in labels_of(part):
        put_label(picture, replace(label, x=label.x + place[0], y=label.y + place[1]))
