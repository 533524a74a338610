"""The picture of budgets: the density of every layer and head, early to late."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...phrase import Phrase
from .look import LIGHT, Look

BUCKETS = ("early (noisiest)", "middle", "late")
ON_NODE = (Phrase("chart_early", "early"), Phrase("chart_middle", "middle"), Phrase("chart_late", "late"))
_MOST_WIDE, _MOST_HIGH = 260, 420


def budget_map(densities: Mapping[str, NDArray[np.float64]], look: Look = LIGHT) -> Image.Image:
    """One row of maps per expert: layers downwards, heads to the right; the denser, the further from the paper.

    Args:
        densities: by expert, (buckets, layers, heads) within 0..1.

    Raises:
        ValueError: if there is no expert.
    """
    rows = []
    for expert, table in densities.items():
        names = BUCKETS if look.width is None else ON_NODE
        maps = [_map(table[bucket], name, look) for bucket, name in enumerate(names)]
        bar = look.colour_bar(1.0, max(60, look.size(maps[0])[1] - 60), Phrase("chart_density", "density"))
        row = look.stack([*maps, bar], across=True, gap=12 if look.width is None else 4)
        head, pen = look.blank(look.size(row)[0], 26)
        title = (
            Phrase("chart_budgets_of", "Density by layer and head: {expert}", expert=expert)
            if len(densities) > 1
            else Phrase("chart_budgets", "Density by layer and head")
        )
        pen.write((look.margin, 6), title, size=16)
        rows.append(look.stack([head, row], gap=4))
    return look.stack(rows)


def _map(table: NDArray[np.float64], title: str, look: Look) -> Image.Image:
    """Layers x heads of one bucket."""
    layers, heads = table.shape
    left, above, least = look.margin + 24, 40, 170
    axis: str = f"heads 0 to {heads - 1}, layers down"
    most_wide, most_high, small = _MOST_WIDE, _MOST_HIGH, 2
    if look.width is not None:  # three maps and the scale beside each other
        left, least = 24, 104
        axis = Phrase("chart_heads", "heads 0 to {last}", last=heads - 1)
        most_wide, most_high, small = least - left - 6, 240, 1
    wide, high = (max(small, min(24, most // count)) for most, count in ((most_wide, heads), (most_high, layers)))
    picture, pen = look.blank(max(left + wide * heads + 6, least), above + high * layers + 24)
    pen.write((left, 4), title)
    pen.write((left, 22), Phrase("chart_mean", "mean {value}", value=f"{table.mean():.2f}"), size=11, fill=look.faint)
    pen.cells(look.ramp(table).repeat(high, axis=0).repeat(wide, axis=1), (left, above))
    pen.rectangle((left - 1, above - 1, left + wide * heads, above + high * layers), outline=look.lines)
    for layer in {0, layers - 1}:
        pen.write((left - 6, above + high * (layer + 0.5)), str(layer), size=11, anchor="rm")
    pen.write((left, above + high * layers + 6), axis, size=11, fill=look.faint)
    return picture
