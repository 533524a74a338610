"""Schedule: how dense a call may be, by noise level and layer; budgets share that out over heads (`budgets`).

The noise level is given as progress: 0 at the noisiest end of sampling, 1 at the clean end, in the sampler's own
percent (ComfyUI's percent_to_sigma, a diffusers step index over its count). It never depends on counting calls, so a
schedule lands at the same noise in both experts of Wan 2.2, under step caching and in second-order samplers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..method.policy import check_density
from ..phrase import Phrase

PRESETS = ("quality", "balanced", "fast")
# Density after the ramp, by the rule in docs/quality.md ("How the presets were chosen").
PRESET_DENSITY = {"quality": 0.30, "balanced": 0.20, "fast": 0.15}
# Share of the trajectory that stays dense at its noisy start; not chosen by measurement.
PRESET_DENSE_START = {"quality": 0.15, "balanced": 0.10, "fast": 0.05}
# Hosts find progress by inverting float32 sigmas, so a step meant to fall on a point may land just before it.
REACHED = 1e-4


@dataclass(frozen=True)
class LayerBand:
    """Layers first..last (inclusive, negative counts from the end) get their density multiplied by `factor`."""

    first: int
    last: int
    factor: float


@dataclass(frozen=True)
class Schedule:
    """Piecewise-linear density over progress; 1 means dense.

    Attributes:
        points: (progress, density) pairs, progress ascending in 0..1; two points at one progress make a step: the
            later one counts from there on. Before the first and after the last point the curve is flat.
        dense_layers: layers that always run dense; negative counts from the end.
        bands: density factors for layer ranges.
        first_dense: share of the layers, 0..1, from the first on, that always run dense too; rounded down.

    Raises:
        ValueError: if a point, share or factor is out of range or the points are out of order.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 0.25),)
    dense_layers: tuple[int, ...] = ()
    bands: tuple[LayerBand, ...] = ()
    first_dense: float = 0.0

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError(Phrase("schedule_no_point", "a schedule needs at least one (progress, density) point"))
        previous = 0.0
        for progress, density in self.points:
            check_density(density)
            if not previous <= progress <= 1.0:
                raise ValueError(
                    Phrase(
                        "schedule_down",
                        "schedule points must ascend within 0..1, got progress {progress} after {previous}",
                        progress=progress,
                        previous=previous,
                    )
                )
            previous = progress
        if any(band.factor < 0 for band in self.bands):
            raise ValueError(Phrase("schedule_factor", "a layer band's factor cannot be negative"))
        if not 0.0 <= self.first_dense <= 1.0:
            raise ValueError(f"first_dense is a share of the layers between 0 and 1, got {self.first_dense}")

    def curve(self, progress: float) -> float:
        """Density at `progress` before layers come in."""
        before = [point for point in self.points if point[0] <= progress + REACHED]
        if not before:
            return self.points[0][1]
        if len(before) == len(self.points):
            return self.points[-1][1]
        (x0, y0), (x1, y1) = before[-1], self.points[len(before)]
        return y0 + (y1 - y0) * max(0.0, progress - x0) / (x1 - x0)

    def is_dense_layer(self, layer: int, layers: int) -> bool:
        if layer < math.floor(self.first_dense * layers):
            return True
        return layer in self.dense_layers or (layers > 0 and layer - layers in self.dense_layers)

    def density(self, progress: float, layer: int, layers: int) -> float | None:
        """Density of a call; None for dense.

        Args:
            progress: 0..1.
            layer: index of the attention layer; layers: how many there are (0 if unknown: negative indices and
                bands counted from the end do not apply then).
        """
        base = self.curve(progress)
        if base >= 1.0 or self.is_dense_layer(layer, layers):
            return None
        for band in self.bands:
            if _from_start(band.first, layers) <= layer <= _from_start(band.last, layers):
                base *= band.factor
        return None if base >= 1.0 else base

    def with_dense_layers(self, dense_layers: Sequence[int]) -> Schedule:
        return replace(self, dense_layers=tuple(dense_layers))


def _from_start(layer: int, layers: int) -> int:
    return layer + layers if layer < 0 else layer


def constant(density: float, *, warmup: float = 0.0) -> Schedule:
    """One density, dense for the first `warmup` share of the trajectory.

    Raises:
        ValueError: if warmup or density lies outside 0..1.
    """
    if not 0.0 <= warmup <= 1.0:
        raise ValueError(f"warmup is a share of the steps between 0 and 1, got {warmup}")
    if warmup == 0.0:
        return Schedule(((0.0, density),))
    return Schedule(((0.0, 1.0), (warmup, 1.0), (warmup, density)))


def preset(name: str, steps: int, density: float | None = None) -> Schedule:
    """Schedule for a run of `steps` steps.

    Long runs start dense and ramp down; a run of 4-8 steps cannot spend a whole step on that (one of four is a
    quarter of the run), so it starts partly sparse instead.

    Args:
        name: one of `PRESETS`.
        density: density after the ramp; None takes the preset's own.

    Raises:
        ValueError: for an unknown name, no steps, or a density outside 0..1.
    """
    if name not in PRESET_DENSITY:
        raise ValueError(f"unknown schedule preset {name!r}: choose one of {', '.join(PRESETS)}")
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, got {steps}")
    target = PRESET_DENSITY[name] if density is None else density
    check_density(target)
    if steps <= 8:
        first = min(1.0, 2.0 * target)
        return Schedule(((0.0, first), (1.0 / steps, first), (1.0 / steps, target)))
    start = PRESET_DENSE_START[name]
    return Schedule(((0.0, 1.0), (start, 1.0), (start, min(1.0, 2.0 * target)), (min(1.0, start + 0.1), target)))
