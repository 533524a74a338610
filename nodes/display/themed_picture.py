"""A picture for the browser, which shows the one of the two that goes with its theme and writes the words on it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from ...draftattn_core.views.charts.canvas import Colour
from ...draftattn_core.views.charts.labels import labels_of
from ...draftattn_core.views.charts.look import DARK, LIGHT, Look, on_node
from ..browser.temp_files import keep_for_browser
from ..words import plain

KEY = "draftattention_picture"
# Far more than a picture on a node has room for.
MAX_LABELS = 400


def themed_picture(draw: Callable[[Look], Image.Image], whole: Image.Image) -> dict[str, Any]:
    """What a node's `ui` says of a picture that the pack's script shows on it.

    Args:
        draw: makes the picture, called once for each theme; both are of one size, with the same labels.
        whole: the picture with all its words in English, which a click opens.
    """
    light, dark = (draw(on_node(look)) for look in (LIGHT, DARK))
    width, height = on_node(LIGHT).size(light)
    labels = [
        {
            "words": plain(one.text),
            "x": one.x / light.width,
            "y": one.y / light.height,
            "size": one.size / light.width,
            "anchor": one.anchor,
            "light": _css(one.fill),
            "dark": _css(other.fill),
        }
        for one, other in zip(labels_of(light), labels_of(dark), strict=True)
    ]
    files = {name: _kept(picture) for name, picture in (("light", light), ("dark", dark), ("whole", whole))}
    return {KEY: [{**files, "width": width, "height": height, "labels": labels[:MAX_LABELS]}]}


def _kept(picture: Image.Image) -> dict[str, str]:
    written = io.BytesIO()
    picture.save(written, "PNG")
    return keep_for_browser(written.getvalue(), "png")


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
