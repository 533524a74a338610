"""Sparsity curves as users write them, and the value a Sparsity Scheduler hands on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...draftattn_core.run.schedule import PRESET_DENSE_START, PRESET_DENSITY, PRESETS, LayerBand, Schedule, preset
from ..words import Words

CURVES = (*PRESETS, "custom points")
# For the picture that users edit in the browser.
PRESET_SHAPES = {name: {"density": PRESET_DENSITY[name], "dense_start": PRESET_DENSE_START[name]} for name in PRESETS}


@dataclass(frozen=True)
class SparsityCurve:
    """A schedule that fits itself to the number of steps; see `presets.ScheduleSpec`.

    Attributes:
        curve: one of `CURVES`.
        density: density after the ramp, 0 for the preset's own; not for custom points.
        points: the curve for custom points, see `parse_points`.
        end_share, end_density: the last share of the denoising gets this density where it is the higher one; share 0
            for none.
        dense_layers, bands: see `Schedule`.

    Raises:
        ValueError: if a value is out of range.
    """

    curve: str = "balanced"
    density: float = 0.0
    points: tuple[tuple[float, float], ...] = ()
    end_share: float = 0.0
    end_density: float = 0.5
    dense_layers: tuple[int, ...] = ()
    bands: tuple[LayerBand, ...] = ()

    def __post_init__(self) -> None:
        if self.curve not in CURVES:
            raise ValueError(f"unknown curve {self.curve!r}: choose one of {', '.join(CURVES)}")
        self.resolve(20)

    def resolve(self, steps: int) -> Schedule:
        """The schedule for a run of `steps` steps."""
        if self.curve == "custom points":
            points = self.points
        else:
            points = preset(self.curve, max(1, steps), self.density or None).points
        return Schedule(self._with_end(points), dense_layers=self.dense_layers, bands=self.bands)

    def _with_end(self, points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if self.end_share <= 0.0:
            return points
        begin = max(0.0, 1.0 - self.end_share)
        curve = Schedule(points)
        kept = [point for point in points if point[0] < begin]
        later = [(begin, max(curve.curve(begin), self.end_density))]
        later += [(x, max(y, self.end_density)) for x, y in points if x > begin]
        return (*kept, (begin, Schedule(points).curve(begin)), *later) if kept else tuple(later)


class DrawnCurve(Protocol):
    """ComfyUI's CURVE, as far as it is used here."""

    @property
    def points(self) -> Sequence[tuple[float, float]]: ...

    def interp(self, x: float) -> float: ...


def drawn_points(curve: DrawnCurve, samples: int = 33) -> tuple[tuple[float, float], ...]:
    """Points of a curve that another node drew, progress to the right and density up, both kept within 0..1.

    Straight lines keep their own points; a bent curve is followed at `samples` even places and at its points.

    Raises:
        ValueError: if the curve has no points.
    """
    own = [(float(x), float(y)) for x, y in curve.points]
    if not own:
        raise ValueError("drawn_curve: the curve has no points; draw at least one")
    middles = [((x0 + x1) / 2, (y0 + y1) / 2) for (x0, y0), (x1, y1) in zip(own, own[1:]) if x1 > x0]
    if any(abs(curve.interp(x) - y) > 1e-6 for x, y in middles):
        places = sorted({*(step / (samples - 1) for step in range(samples)), *(x for x, _ in own)})
        own = [(x, float(curve.interp(x))) for x in places]
    return tuple((min(1.0, max(0.0, x)), min(1.0, max(0.0, y))) for x, y in own)


def parse_points(text: str) -> tuple[tuple[float, float], ...]:
    """Control points from text such as "0:1, 0.15:1, 0.15:0.4, 0.25:0.2" (progress:density).

    Raises:
        ValueError: if a part is no pair of numbers, or there is none.
    """
    points = []
    for part in _parts(text):
        pair = part.split(":")
        try:
            progress, density = (float(number) for number in pair)
        except ValueError:
            raise ValueError(Words("check_points", part=repr(part))) from None
        points.append((progress, density))
    if not points:
        raise ValueError(Words("check_no_points"))
    return tuple(points)


def parse_bands(text: str) -> tuple[LayerBand, ...]:
    """Layer bands from text such as "10-20:1.5, -8..-1:2" (first-last:factor on the density).

    Raises:
        ValueError: if a part cannot be read, or its range goes down.
    """
    bands = []
    for part in _parts(text):
        match = re.fullmatch(r"(-?\d+)(?:\s*(?:\.\.|-)\s*(-?\d+))?\s*:\s*(\d*\.?\d+)", part)
        if match is None:
            raise ValueError(Words("check_bands", part=repr(part)))
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if first > last and (first < 0) == (last < 0):
            raise ValueError(Words("check_bands_down", part=repr(part)))
        bands.append(LayerBand(first, last, float(match[3])))
    return tuple(bands)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"[,;\n]", text) if part.strip()]
