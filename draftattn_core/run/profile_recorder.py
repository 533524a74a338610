"""Collecting the error curves of one run into a profile of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import torch

from ..method.policy import TAILS, head_tails
from .convex_curve import Array
from .error_curve import CURVE_DENSITIES, ErrorCurves
from .figures import CompleteFigures, Figures, bucket_of, layers_of
from .fingerprint import Conditions, Fingerprint, ProfileError
from .profile import Profile, prompt_key
from .settings import Settings


@dataclass(eq=False)
class ProfileRecorder:
    """Takes the curves of a run as they come, from any thread. Make one per run.

    Attributes:
        fingerprint, conditions: of the run.
        densities: at which curves are kept; they must have been measured there.
    """

    fingerprint: Fingerprint
    conditions: Conditions
    densities: tuple[float, ...]
    _experts: dict[str, Figures] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of_run(cls, settings: Settings, fingerprint: Fingerprint) -> ProfileRecorder:
        """For a run of that model under these settings.

        Raises:
            ProfileError: if its figures could not be kept.
        """
        tails = TAILS if settings.auto_tail else head_tails(settings.policy.tail, fingerprint.heads)
        conditions = Conditions.of(
            settings.policy,
            q_block=settings.q_block,
            k_block=settings.k_block,
            tile=settings.tile,
            order=settings.order,
            tails=tuple(name for name in TAILS if name in tails),
            gains=settings.auto_gain,
        )
        return cls(fingerprint, conditions, CURVE_DENSITIES)

    def wants(self, expert: str, progress: float, layer: int, first_head: int = 0) -> bool:
        """Whether nothing was measured of that layer in that bucket yet: one probe of each is enough for a run."""
        with self._lock:
            figures = self._experts.get(expert)
            return figures is None or not bool(figures.counts[bucket_of(progress), layer, first_head])

    def complete(self, expert: str) -> CompleteFigures | None:
        """What was measured of an expert so far, filled in; None before the first."""
        with self._lock:
            figures = self._experts.get(expert)
        if figures is None or not bool(figures.measured.any()):
            return None
        return CompleteFigures(figures.filled(), self.densities, self.conditions.tails)

    def measured_layers(self, expert: str) -> tuple[int, ...]:
        """Layers of which something was measured."""
        with self._lock:
            figures = self._experts.get(expert)
        return () if figures is None else layers_of(figures)

    def add(
        self, curves: ErrorCurves, *, expert: str, weights: str, progress: float, layer: int, first_head: int = 0
    ) -> None:
        """Count the curves of one call; heads whose figures are not finite are left out. Waits for the device.

        Args:
            expert, weights: name and identity of the model that ran.
            progress: 0..1, the call's noise level.
            layer: index of the layer; first_head: global number of the first head in `curves`.

        Raises:
            ProfileError: if layer, heads or densities are not those of the recorder.
        """
        model = self.fingerprint
        last_head = first_head + curves.heads
        if not 0 <= layer < model.layers or first_head < 0 or last_head > model.heads:
            raise ProfileError(
                f"layer {layer}, heads {first_head} to {last_head - 1} are none of {model}: calibrate anew"
            )
        if curves.densities != self.densities:
            raise ProfileError("these curves were measured at other densities than the profile keeps: use one set")
        found = self._figures(curves.cpu(), weights, bucket_of(progress), layer, first_head)
        with self._lock:
            known = self._experts.get(expert)
            self._experts[expert] = found if known is None else known.merged(found)

    def _figures(self, curves: ErrorCurves, weights: str, bucket: int, layer: int, first_head: int) -> Figures:
        model, names = self.fingerprint, curves.names()
        unknown = [name for name in names if name not in self.conditions.tails]
        if unknown:
            raise ProfileError(f"the tail {unknown[0]} is none of the profile's: use the settings it was begun with")
        squared, gains = at_densities(curves)
        relative = np.sqrt(squared / np.maximum(curves.norms.numpy()[:, None], 1e-30))
        finite = torch.from_numpy(np.isfinite(squared).all(-1)) & curves.norms.isfinite()
        figures = Figures.empty(weights, model.layers, model.heads, len(self.densities))
        for head in torch.nonzero(finite).flatten().tolist():
            cell = (bucket, layer, first_head + head)
            figures.counts[cell] = 1
            figures.squared[cell] = torch.from_numpy(squared[head])
            figures.norms[cell] = curves.norms[head]
            figures.worst[cell] = torch.from_numpy(relative[head]).clamp_max(torch.finfo(torch.float16).max)
            figures.gains[cell] = torch.from_numpy(gains[head])
            figures.tails[cell] = self.conditions.tails.index(names[head])
        return figures

    def profile(self, *, prompt: str | None, grid: str, steps: int) -> Profile | None:
        """A profile of this run alone, to be used or merged into a kept one; None if nothing was measured.

        Args:
            prompt: its text, of which a key is kept; None if unknown, which counts as no prompt.
            grid: the token grid, such as "9x24x40"; steps: of the run.
        """
        with self._lock:
            experts = {expert: self._experts[expert] for expert in sorted(self._experts)}
        if not any(bool(figures.measured.any()) for figures in experts.values()):
            return None
        keys = () if prompt is None else (prompt_key(prompt),)
        return Profile(self.fingerprint, self.conditions, self.densities, experts, 1, keys, {grid: 1}, {str(steps): 1})


def at_densities(curves: ErrorCurves) -> tuple[Array, Array]:
    """Squared errors and gains at the densities asked for instead of those that were kept.

    Forced blocks and rounding keep a little more than asked, on small grids several times as much. Errors are
    interpolated in logarithms, flat below what is kept at least.
    """
    at = np.log(curves.densities)
    kept, squared, gains = (x.numpy() for x in (curves.kept, curves.squared, curves.gains))
    places = np.log(np.maximum(kept, 1e-9))
    logs = np.log(np.maximum(squared, 1e-30))
    return (
        np.stack([np.exp(np.interp(at, x, y)) for x, y in zip(places, logs, strict=True)]),
        np.stack([np.interp(at, x, y) for x, y in zip(places, gains, strict=True)]),
    )
