"""The targets of a scenario's table and what was found of them.

Compositions are chosen by half of the seeds and judged by the other half, both ways; a figure is the mean of the two,
weighted by their rounds. A line is always that of one family: settings of two families are never mixed between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.frontier.fronts import SAME_WORK, Point, at_work, by_family, envelope
from benchmarks.frontier.report import WORKS, Table
from benchmarks.verdict import Verdict

LOW_WORKS = (0.2, 0.25, 0.3)
MIDDLE_WORKS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
FORECASTS = {"spread": "planned forecasts (spread)", "forecast": "forecasts by threshold"}
# Of runs of fewer than 20 steps: a quarter of them leaves nothing to sample with.
SHORT_WORKS = (0.4, 0.5, 0.6)
# Decimals that a figure of each quality is given with.
_DIGITS = {"psnr": 1, "ssim": 3, "converged": 1}
_NOBODY = "too few rounds to choose on one half and judge on the other"


def verdicts(table: Table) -> list[Verdict]:
    """The targets of this table's scenario, each with its number."""
    found = [_beats_easycache(table, family) for family in FORECASTS]
    if table.scenario.steps >= 20:
        found += [_composition_on_envelope(table, quality) for quality in ("psnr", "ssim")]
        found += [_beats_fewer_steps(table), _nearer_the_converged_path(table, LOW_WORKS, 2.0)]
    else:
        found += [_not_below_sparse(table, quality) for quality in ("psnr", "ssim")]
        found.append(_nearer_the_converged_path(table, SHORT_WORKS, 0.0))
    return found


@dataclass(frozen=True)
class _Mean:
    """A figure at one work.

    Attributes:
        value: mean over the halves that judge, weighted by their rounds; None where one of them has none.
        parts: of each half.
    """

    value: float | None
    parts: tuple[float | None, ...]

    def words(self, digits: int, *, signed: bool = True) -> str:
        """The mean, and in brackets what each half says."""
        if self.value is None:
            return "not reached"
        sign = "+" if signed else ""
        parts = " / ".join(format(part, f"{sign}.{digits}f") for part in self.parts if part is not None)
        return f"{self.value:{sign}.{digits}f} ({parts})" if len(self.parts) > 1 else f"{self.value:{sign}.{digits}f}"


def _judge(table: Table, figure: Callable[[Sequence[Point]], float | None]) -> _Mean:
    parts = tuple(figure(half.points) for half in table.halves)
    known = [(part, half.rounds) for part, half in zip(parts, table.halves) if part is not None]
    if not known or len(known) < len(parts):
        return _Mean(None, parts)
    return _Mean(sum(part * rounds for part, rounds in known) / sum(rounds for _, rounds in known), parts)


def _together(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if " x " in point.family]


def _alone(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if " x " not in point.family]


def _dense(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.family.startswith("dense")]


def _value(found: tuple[str, float] | None) -> float | None:
    return None if found is None else found[1]


def _lead(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _beats_easycache(table: Table, family: str) -> Verdict:
    families = by_family(table.points)
    easycache = families.get("easycache", ())
    dearest = max((point.work for point in easycache), default=0.0)
    target = f"{FORECASTS[family]} at least 5 dB over EasyCache at works 0.3, 0.4, 0.5"
    words, met = [], []
    for work in (0.3, 0.4, 0.5):
        ours, theirs = at_work(families.get(family, ()), work, "psnr"), at_work(easycache, work, "psnr")
        if theirs is None or dearest < work - SAME_WORK:
            words.append(f"{work:g}: EasyCache was not measured there")
        elif ours is None:
            words.append(f"{work:g}: not reached")
            met.append(False)
        else:
            words.append(f"{work:g}: {ours - theirs:+.1f} dB")
            met.append(ours - theirs >= 5.0)
    return Verdict(target, all(met) if met else None, ", ".join(words))


def _composition_on_envelope(table: Table, quality: str) -> Verdict:
    target = f"the best composition on or above every single method in {quality.upper()} at works 0.2 to 0.5"
    if not table.halves:
        return Verdict(target, None, _NOBODY)
    behind = {
        work: _judge(
            table,
            lambda points, work=work: _lead(  # type: ignore[misc]
                _value(envelope(_together(points), work, quality)), _value(envelope(_alone(points), work, quality))
            ),
        )
        for work in MIDDLE_WORKS
        if _reached(table, _alone, work, quality)
    }
    return _at_least(target, behind, 0.0, _DIGITS[quality])


def _reached(table: Table, of: Callable[[Sequence[Point]], list[Point]], work: float, quality: str) -> bool:
    """Whether a kind of rows has a figure at a work in every half."""
    return all(envelope(of(half.points), work, quality) is not None for half in table.halves)


def _at_least(target: str, found: Mapping[float, _Mean], least: float, digits: int) -> Verdict:
    """Met where every figure is at least `least`; one that is not reached misses it."""
    if not found:
        return Verdict(target, None, "no common work")
    words = ", ".join(f"{work:g}: {mean.words(digits)}" for work, mean in found.items())
    return Verdict(target, all(mean.value is not None and mean.value >= least for mean in found.values()), words)


def _beats_fewer_steps(table: Table) -> Verdict:
    """One family has to do both: be closer in PSNR and in SSIM."""
    target = "up to a work of 0.3, against the best sampler with fewer steps: PSNR + 2 dB and 1 - SSIM at most half"
    if not table.halves:
        return Verdict(target, None, _NOBODY)
    families = sorted({point.family for half in table.halves for point in _together(half.points)})
    words, met = [], []
    for work in LOW_WORKS:
        if not _reached(table, _dense, work, "psnr"):
            continue
        found = {family: _over_fewer_steps(table, family, work) for family in families}
        both = {
            family: (gain, part)
            for family, (gain, part) in found.items()
            if gain.value is not None and part.value is not None
        }
        if not both:
            words.append(f"{work:g}: not reached")
            met.append(False)
            continue
        family = max(both, key=lambda name: _margin(*both[name]))
        gain, part = both[family]
        words.append(f"{work:g}: {gain.words(1)} dB, {part.words(2, signed=False)} of 1 - SSIM ({family})")
        met.append(_margin(gain, part) >= 0.0)
    return Verdict(target, all(met) if met else None, ", ".join(words) or "no common work")


def _over_fewer_steps(table: Table, family: str, work: float) -> tuple[_Mean, _Mean]:
    """A family's lead in dB over the best sampler at this work, and its part of that sampler's 1 - SSIM."""

    def gain(points: Sequence[Point]) -> float | None:
        return _lead(_of(points, family, work, "psnr"), _value(envelope(_dense(points), work, "psnr")))

    def part(points: Sequence[Point]) -> float | None:
        ours, theirs = _of(points, family, work, "ssim"), _value(envelope(_dense(points), work, "ssim"))
        return None if ours is None or theirs is None else (1 - ours) / (1 - theirs)

    return _judge(table, gain), _judge(table, part)


def _of(points: Sequence[Point], family: str, work: float, quality: str) -> float | None:
    return at_work([point for point in points if point.family == family], work, quality)


def _margin(gain: _Mean, part: _Mean) -> float:
    """By how much of the target the worse of both passes it; negative where it misses."""
    assert gain.value is not None and part.value is not None
    return min(gain.value / 2.0 - 1.0, 1.0 - part.value / 0.5)


def _nearer_the_converged_path(table: Table, works: Sequence[float], least: float) -> Verdict:
    """Between samplers the dense run of one of them is no judge. Only PSNR to the converged path is kept."""
    target = (
        f"at works {works[0]:g} to {works[-1]:g}, beside the converged path: compositions at least {least:g} dB over "
        "the best sampler with fewer steps"
    )
    halves = [half for half in table.halves if any(point.converged is not None for point in half.points)]
    if not halves:
        return Verdict(target, None, "no round that judges has that path")
    followed = Table(table.scenario, table.rounds, table.share, table.points, tuple(halves), table.followed)

    def lead(points: Sequence[Point], work: float) -> float | None:
        known = [point for point in points if point.converged is not None]
        ours, theirs = (envelope(some(known), work, "converged") for some in (_together, _dense))
        return _lead(_value(ours), _value(theirs))

    gains = {}
    for work in works:
        known = [[p for p in _dense(half.points) if p.converged is not None] for half in halves]
        if all(envelope(some, work, "converged") is not None for some in known):
            gains[work] = _judge(followed, lambda points, work=work: lead(points, work))  # type: ignore[misc]
    verdict = _at_least(target, gains, least, 1)
    return Verdict(target, verdict.met, f"{verdict.found}; {table.followed} rounds have that path")


def _not_below_sparse(table: Table, quality: str) -> Verdict:
    target = f"compositions never below sparse alone in {quality.upper()}"
    if not table.halves:
        return Verdict(target, None, _NOBODY)
    gains = {}
    for work in WORKS:

        def lead(points: Sequence[Point], work: float = work) -> float | None:
            sparse = [point for point in points if point.family.startswith("sparse, ours")]
            ours = [point for point in points if " x sparse, ours" in point.family]
            return _lead(_value(envelope(ours, work, quality)), _value(envelope(sparse, work, quality)))

        mean = _judge(table, lead)
        if mean.value is not None:
            gains[work] = mean
    if not gains:
        return Verdict(target, None, "no common work")
    worst = min(gains, key=lambda work: gains[work].value or 0.0)
    value = gains[worst].value
    return Verdict(
        target, value is not None and value >= 0.0, f"at worst {gains[worst].words(_DIGITS[quality])}, at {worst:g}"
    )
