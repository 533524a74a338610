"""Runs put together from measured steps, and what they say about the targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import limits
from benchmarks.e2e.models import Model, linear_flops
from benchmarks.kernels.row import Row
from benchmarks.kernels.verdicts import TARGET_DEVICE, Verdict
from benchmarks.limits import target
from draftattention.draftattn_core.run.schedule import preset

RUNS = (20, 4)
# Over 20 steps at the balanced preset, sparse attention alone: what arithmetic leaves to kernels within our limits.
TARGETS = {sizes.name: target(sizes.name) for sizes in limits.MODELS}


# What a row of `steps.py` timed.
DENSE, SPARSE, FIRST = "dense", "sparse", "first sparse"


@dataclass(frozen=True)
class Run:
    """A run put together from its steps. None: unmeasured.

    Attributes:
        factor: dense time over sparse time, with what a run pays once in its first sparse step (the error probe of
            every layer, index tables).
        later_factor: the same without, as if its first sparse step were like its later ones.
    """

    model: str
    steps: int
    executed: float | None
    factor: float | None
    later_factor: float | None


def densities_of(steps: int) -> list[float]:
    """Density of every step of a run at the balanced preset."""
    schedule = preset("balanced", steps)
    return [round(schedule.curve(step / steps), 6) for step in range(steps)]


def wanted_densities() -> list[float]:
    """Sparse densities the runs ask for, the one most steps have first: what is cut off last is missed least."""
    asked = [density for steps in RUNS for density in densities_of(steps) if density < 1.0]
    return sorted(set(asked), key=lambda density: -asked.count(density))


def first_densities() -> list[float]:
    """Densities of the first sparse step of each run."""
    found = (next((density for density in densities_of(steps) if density < 1.0), None) for steps in RUNS)
    return sorted({density for density in found if density is not None}, reverse=True)


# Assumptions of the estimate, not measurements.
ASSUMED_TFLOPS, BUILDING = 450.0, 20.0


def estimate(model: Model, repeats: int) -> float:
    """Seconds a model is expected to take: its weights times the tokens that pass through them, and attention.

    Raises:
        ImportError: without diffusers, which knows the weights.
    """
    linear, attention = linear_flops(model), model.attention_flops
    warm = sum(linear + density * attention for density in (1.0, *wanted_densities()))
    first = sum(linear + density * attention for density in first_densities())
    return BUILDING + ((repeats + 1) * warm + repeats * first) / (ASSUMED_TFLOPS * 1e12)


def runs_of(model: str, rows: Iterable[Row]) -> list[Run]:
    """Runs of one model from its rows."""
    found = [row for row in rows if row.shape == model and row.status in ("timed", "unmeasured")]
    later = {row.density: row for row in found if row.what != FIRST}
    first = {row.density: row for row in found if row.what == FIRST}
    dense = later.get(1.0)
    runs = []
    for steps in RUNS:
        densities = densities_of(steps)
        begin = next((index for index, density in enumerate(densities) if density < 1.0), None)
        taken = [later.get(density) for density in densities]
        paid = [first.get(density) if index == begin else later.get(density) for index, density in enumerate(densities)]
        executed = [row.executed for row in taken if row is not None and row.executed is not None]
        share = sum(executed) / steps if len(executed) == steps else None
        runs.append(Run(model, steps, share, _factor(dense, paid), _factor(dense, taken)))
    return runs


def _factor(dense: Row | None, steps: list[Row | None]) -> float | None:
    seconds = [row.seconds for row in steps if row is not None and row.seconds is not None]
    if dense is None or dense.seconds is None or len(seconds) < len(steps):
        return None
    return len(steps) * dense.seconds / sum(seconds)


def verdict(run: Run, device: str) -> Verdict | None:
    """What a run says about its target; None where there is none."""
    if run.steps != RUNS[0] or run.model not in TARGETS:
        return None
    wanted = TARGETS[run.model]
    name = f"{run.model}, {run.steps} steps, balanced preset: at least {wanted:.2f} x dense"
    if run.factor is None:
        return Verdict(name, None, "not every step it needs was timed")
    said = f"{run.factor:.2f} x"
    if run.later_factor is not None:
        said += f" ({run.later_factor:.2f} x without what a run pays once)"
    if run.factor < wanted:
        said += f", short by {wanted - run.factor:.2f}"
    if TARGET_DEVICE not in device:
        said += f"; measured on {device}, the target is for an {TARGET_DEVICE}"
    return Verdict(name, run.factor >= wanted, said)
