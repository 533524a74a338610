"""The picture of budgets: the density of every layer and head, early to late."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .canvas import FAINT, LINES, blank, colour_bar, ramp, stack, write

BUCKETS = ("early (noisiest)", "middle", "late")
_MARGIN, _MOST_WIDE, _MOST_HIGH = 14, 260, 420


def budget_map(densities: Mapping[str, NDArray[np.float64]]) -> Image.Image:
    """One row of maps per expert: layers downwards, heads to the right, light = sparse, dark = dense.

    Args:
        densities: by expert, (buckets, layers, heads) within 0..1.

    Raises:
        ValueError: if there is no expert.
    """
    rows = []
    for expert, table in densities.items():
        maps = [_map(table[bucket], name) for bucket, name in enumerate(BUCKETS)]
        row = stack([*maps, colour_bar(1.0, maps[0].height - 60, "density")], across=True)
        head, pen = blank(row.width, 26)
        title = "Density by layer and head" + (f": {expert}" if len(densities) > 1 else "")
        write(pen, (_MARGIN, 6), title, size=16)
        rows.append(stack([head, row], gap=4))
    return stack(rows)


def _map(table: NDArray[np.float64], title: str) -> Image.Image:
    """Layers x heads of one bucket."""
    layers, heads = table.shape
    wide, high = max(2, min(24, _MOST_WIDE // heads)), max(2, min(24, _MOST_HIGH // layers))
    left, above = _MARGIN + 24, 40
    picture, pen = blank(max(left + wide * heads + 6, 170), above + high * layers + 24)
    write(pen, (left, 4), title)
    write(pen, (left, 22), f"mean {table.mean():.2f}", size=11, fill=FAINT)
    cells = ramp(table).repeat(high, axis=0).repeat(wide, axis=1)
    picture.paste(Image.fromarray(cells), (left, above))
    pen.rectangle((left - 1, above - 1, left + wide * heads, above + high * layers), outline=LINES)
    for layer in {0, layers - 1}:
        write(pen, (left - 6, above + high * (layer + 0.5)), str(layer), size=11, anchor="rm")
    write(pen, (left, above + high * layers + 6), f"heads 0 to {heads - 1}, layers down", size=11, fill=FAINT)
    return picture
