"""Draft maps for the viewer in the browser: written once into the host's temporary folder, fetched when looked at."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from torch import Tensor

from ...draftattn_core.run.capture import video_blocks
from ...draftattn_core.run.coarse_maps import CoarseMap, CoarseMaps
from ...draftattn_core.views.charts.blocks import resample_frames
from ...draftattn_core.views.charts.clips import Frames
from ..display.clip_sheet import clip_sheet
from .temp_files import keep_for_browser

MAX_SHEET_PIXELS = 6_000_000
FASTEST = 1


def send_maps(maps: CoarseMaps, files: dict[str, Any], frames: Frames) -> dict[str, Any]:
    """What the browser is told: where the maps are, what shape they have, and the frames to draw them over.

    Args:
        files: what was told of these maps before; they are written once.
        frames: the clip that was made, of any number of frames and any size.

    Returns:
        Plain values. "maps" is empty if nothing was sparse. "blocks" is a file of two little-endian uint16 arrays, the
        query and the key block of every video token, in the order frame, row, column. The file of a map has the uint8
        arrays (heads, rows, columns) `draft` and `kept` one after the other, see `CoarseMap`. All are in zlib's form.
    """
    if not maps.kept:
        return {"maps": []}
    if not files:
        kept = [maps.kept[place] for place in sorted(maps.kept)]
        layout = kept[0].layout
        files.update(
            grid=list(layout.grid.as_tuple()),
            blocks=_file(*(blocks.numpy().astype("<u2") for blocks in video_blocks(layout))),
            maps=[_told(one) for one in kept if one.layout == layout],
        )
    t, h, w = files["grid"]
    picture = resample_frames(frames, t, *frames.shape[1:3]) if len(frames) != t else frames
    sheet = clip_sheet(picture, max_frames=t, max_pixels=MAX_SHEET_PIXELS)
    return {**files, "sheet": {**keep_for_browser(sheet.data, sheet.suffix), **sheet.told()}}


def _told(kept: CoarseMap) -> dict[str, Any]:
    heads, rows, columns = kept.draft.shape
    return {
        "step": kept.position.step,
        "layer": kept.position.layer,
        "heads": heads,
        "rows": kept.rows.tolist(),
        "columns": columns,
        "merged": kept.merged,
        "file": _file(_bytes(kept.draft), _bytes(kept.kept)),
    }


def _bytes(values: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = values.contiguous().numpy()
    return array


def _file(*arrays: np.ndarray[Any, Any]) -> dict[str, str]:
    return keep_for_browser(zlib.compress(b"".join(array.tobytes() for array in arrays), FASTEST), "bin")
