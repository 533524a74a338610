"""Fronts: the best quality of a family at a given work, from the points it was measured at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# Means of equal works over many rounds differ by rounding, at this decimal at most.
SAME_WORK_DIGITS = 9
SAME_WORK = 10.0**-SAME_WORK_DIGITS


@dataclass(frozen=True)
class Point:
    """A method's means over the rounds of a scenario.

    Attributes:
        method: its name.
        family: the line it belongs to.
        work: share of the dense run's multiplications.
        psnr, ssim, flicker: against the dense run of the scenario's steps by the same sampler, same seed.
        converged: PSNR against the converged path; None where it was not measured.
        acts: for a composition, whether both levers act (see `report.acts`); True for all others.
    """

    method: str
    family: str
    work: float
    psnr: float
    ssim: float
    flicker: float
    converged: float | None = None
    acts: bool = True


def front(points: Iterable[Point], quality: str) -> list[Point]:
    """The points that no other of them beats in both work and quality, by rising work."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (round(p.work, SAME_WORK_DIGITS), -getattr(p, quality))):
        if not best or getattr(point, quality) > getattr(best[-1], quality):
            best.append(point)
    return best


def blend_at(points: Iterable[Point], work: float, quality: str) -> dict[str, float] | None:
    """Method -> its weight in a family's value at `work`, of its front's neighbours there; None outside of it.

    A family is never credited with a point beyond its own: below its cheapest point it has nothing to offer, above
    its dearest one it keeps that point's quality.
    """
    line = front(points, quality)
    if not line or work < line[0].work - SAME_WORK:
        return None
    for left, right in zip(line, line[1:]):
        if left.work <= work <= right.work:
            part = (work - left.work) / (right.work - left.work)
            return {left.method: 1 - part, right.method: part}
    return {line[0].method if work < line[0].work else line[-1].method: 1.0}


def blended(points: Iterable[Point], blend: Mapping[str, float], quality: str) -> float | None:
    """What a blend has among `points`, which may be those of other rounds; None where one of its methods is missing."""
    values = {point.method: getattr(point, quality) for point in points if point.method in blend}
    if len(values) < len(blend) or None in values.values():
        return None
    return float(sum(weight * values[method] for method, weight in blend.items()))


def at_work(points: Iterable[Point], work: float, quality: str) -> float | None:
    """Quality of the family at `work`, linear between neighbours of its front; None outside of it (see `blend_at`)."""
    members = list(points)
    blend = blend_at(members, work, quality)
    return None if blend is None else blended(members, blend, quality)


def by_family(points: Sequence[Point]) -> Mapping[str, list[Point]]:
    families: dict[str, list[Point]] = {}
    for point in points:
        families.setdefault(point.family, []).append(point)
    return families


def envelope(points: Sequence[Point], work: float, quality: str) -> tuple[str, float] | None:
    """The family that is best at `work`, and its quality there; None if none reaches it."""
    found = {family: at_work(members, work, quality) for family, members in by_family(points).items()}
    reached = {family: value for family, value in found.items() if value is not None}
    if not reached:
        return None
    family = max(reached, key=reached.__getitem__)
    return family, reached[family]
