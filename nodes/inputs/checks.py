"""What is wrong with what users write into widgets: found before anything runs, and where it is text while they type.

A value is None where it is not known yet, because another node will bring it; what depends on it is then left to the
node itself. Every answer names the input and says what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ...draftattn_core.run.fingerprint import check_name
from ...draftattn_core.run.profile_file import profile_path
from ..words import LIST, OR, Joined, Words
from .curves import CURVES, SparsityCurve, parse_bands, parse_points
from .presets import BLOCKS, parse_layers, parse_tile

MAX_TEXT = 4000
CUSTOM_POINTS = CURVES[-1]


def apply_problems(
    tile: str | None = None, blocks: str | None = None, dense_layers: str | None = None
) -> dict[str, str]:
    """Problems of DraftAttention Sparse's widgets, by input."""
    found: dict[str, str] = {}
    if blocks is not None and blocks not in BLOCKS:
        found["blocks"] = Words("check_choice", input="blocks", value=repr(blocks), choices=Joined(BLOCKS, LIST))
    if tile is not None:
        _note(found, "tile", lambda: _check_tile(tile, BLOCKS.get(blocks or "")))
    if dense_layers is not None:
        _note(found, "dense_layers", lambda: parse_layers(_short(dense_layers)))
    return found


def scheduler_problems(
    curve: str | None = None,
    points: str | None = None,
    layer_bands: str | None = None,
    dense_layers: str | None = None,
) -> dict[str, str]:
    """Problems of the Sparsity Scheduler's widgets, by input; points count only where the curve asks for them."""
    found: dict[str, str] = {}
    if curve is not None and curve not in CURVES:
        found["curve"] = Words("check_choice", input="curve", value=repr(curve), choices=Joined(CURVES, LIST))
    if points is not None and curve == CUSTOM_POINTS:
        _note(found, "points", lambda: SparsityCurve(CUSTOM_POINTS, points=parse_points(_short(points))))
    if layer_bands is not None:
        _note(found, "layer_bands", lambda: parse_bands(_short(layer_bands)))
    if dense_layers is not None:
        _note(found, "dense_layers", lambda: parse_layers(_short(dense_layers)))
    return found


def report_problems(filename_prefix: str | None = None) -> dict[str, str]:
    """Problems of DraftAttention Report's widgets, by input."""
    if filename_prefix is None:
        return {}
    for path in (PurePosixPath(filename_prefix), PureWindowsPath(filename_prefix)):
        if path.is_absolute() or path.drive or ".." in path.parts:
            return {"filename_prefix": Words("check_prefix", value=repr(filename_prefix))}
    return {}


def calibrate_problems(name: str | None = None, expert: str | None = None) -> dict[str, str]:
    """Problems of DraftAttention Calibrate's widgets, by input."""
    found: dict[str, str] = {}
    if name is not None:
        _note(found, "name", lambda: profile_path(Path(), name.strip()), Words("check_name", value=repr(name[:80])))
    if expert is not None:
        remedy = Words("check_expert", value=repr(str(expert)[:80]))
        _note(found, "expert", lambda: check_name("expert", expert), remedy)
    return found


def skip_problems(start: float | None = None, end: float | None = None) -> dict[str, str]:
    """Problems of Skip Steps' widgets, by input: also the range, which the host leaves to the node that judges one."""
    first, last = (0.0 if start is None else start), (1.0 if end is None else end)
    return {} if 0.0 <= first < last <= 1.0 else {"start": Words("check_window", start=first, end=last)}


# Of the texts, which the browser has judged while they are typed.
PROBLEMS: Mapping[str, Callable[..., dict[str, str]]] = {
    "ApplyDraftAttention": apply_problems,
    "SparsityScheduler": scheduler_problems,
    "DraftAttentionReport": report_problems,
    "DraftAttentionCalibrate": calibrate_problems,
}


def judgement(problems: Mapping[str, str]) -> bool | str:
    """What a node's validate_inputs returns: True, or everything that is wrong."""
    return "; ".join(problems.values()) or True


def _check_tile(text: str, blocks: tuple[int, int] | None) -> None:
    tile = parse_tile(_short(text))
    if tile is None:
        return
    sizes = {max(blocks)} if blocks else {max(pair) for pair in BLOCKS.values()}
    if prod(tile) not in sizes:
        wanted = Joined(map(str, sorted(sizes)), OR)
        raise ValueError(Words("check_tile_size", value=text.strip(), tokens=prod(tile), wanted=wanted))


def _note(found: dict[str, str], name: str, check: Callable[[], Any], instead: str | None = None) -> None:
    """Keep what a check says is wrong; `instead` of the core's own words, which have no key."""
    try:
        check()
    except ValueError as error:
        said = instead or (error.args[0] if error.args else "")
        names_it = str(said).replace(" ", "_").startswith(f"{name}:")
        found[name] = said if names_it else Words("check_problem", input=name, problem=said)


def _short(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise ValueError(Words("check_long", length=len(text), most=MAX_TEXT))
    return text
