"""A picture for the browser, which shows the one of the two that goes with its theme."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from ...draftattn_core.views.charts.look import DARK, LIGHT, Look, on_node
from ..browser.temp_files import keep_for_browser

KEY = "draftattention_picture"


def themed_picture(draw: Callable[[Look], Image.Image]) -> dict[str, Any]:
    """What a node's `ui` says of a picture that the pack's script shows on it.

    Args:
        draw: makes the picture, called once for each theme; both are of one size.
    """
    files, size = {}, (0, 0)
    for theme, look in (("light", on_node(LIGHT)), ("dark", on_node(DARK))):
        picture = draw(look)
        written = io.BytesIO()
        picture.save(written, "PNG")
        files[theme], size = keep_for_browser(written.getvalue(), "png"), look.size(picture)
    return {KEY: [{**files, "width": size[0], "height": size[1]}]}
