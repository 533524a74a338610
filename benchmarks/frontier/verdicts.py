"""The targets of a scenario's table and what was found of them.

Compositions are chosen by half of the seeds and judged by the other half, both ways; a figure is the mean of the two,
weighted by their rounds. What is chosen is a setting, or two neighbours of one family's front and their weights:
settings of two families are never mixed. Where the judging half makes it dearer, it is held against dearer rows. What
it is held against is chosen by the half that judges, which favours the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.frontier.fronts import SAME_WORK, Point, at_work, blend_at, blended, by_family, envelope
from benchmarks.frontier.report import Half, Table
from benchmarks.verdict import Verdict

LOW_WORKS = (0.2, 0.25, 0.3)
MIDDLE_WORKS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
FORECASTS = {"spread": "planned forecasts (spread)", "forecast": "forecasts by threshold"}
# Of runs of fewer than 20 steps: a quarter of them leaves nothing to sample with.
SHORT_WORKS = (0.4, 0.5, 0.6)
ALL_WORKS = tuple(0.15 + 0.05 * step for step in range(17))
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


def _judge(table: Table, figure: Callable[[Half], float | None]) -> _Mean:
    parts = tuple(figure(half) for half in table.halves)
    known = [(part, half.rounds) for part, half in zip(parts, table.halves) if part is not None]
    if not known or len(known) < len(parts):
        return _Mean(None, parts)
    return _Mean(sum(part * rounds for part, rounds in known) / sum(rounds for _, rounds in known), parts)


@dataclass(frozen=True)
class _Choice:
    """A composition as one half chose it for a work, and as the other measures it.

    Attributes:
        family: of its settings.
        blend: method -> weight.
        work: where it is held against others: what it costs there, and no less than it was chosen for.
        points: of the half that judges.
    """

    family: str
    blend: Mapping[str, float]
    work: float
    points: Sequence[Point]

    def has(self, quality: str) -> float | None:
        return blended(self.points, self.blend, quality)


def _choices(
    points: Sequence[Point], judging: Sequence[Point], work: float, quality: str, of: Callable[[Point], bool]
) -> list[_Choice]:
    """What every family of compositions offers at a work, chosen among `points`; one whose lever idles is left out."""
    found = []
    for family, members in by_family([p for p in points if of(p) and p.acts]).items():
        blend = blend_at(members, work, quality)
        cost = None if blend is None else blended(judging, blend, "work")
        if blend is not None and cost is not None:
            found.append(_Choice(family, blend, max(work, cost), judging))
    return found


def _chosen(half: Half, work: float, quality: str, of: Callable[[Point], bool]) -> _Choice | None:
    """The composition that the other half has for a work, by its quality there."""
    found = _choices(half.chosen_by, half.points, work, quality, of)
    return max(found, key=lambda choice: blended(half.chosen_by, choice.blend, quality) or 0.0) if found else None


def _lead_of_chosen(
    half: Half,
    work: float,
    quality: str,
    of: Callable[[Point], bool],
    over: Callable[[Sequence[Point]], list[Point]],
    judged: str = "",
) -> float | None:
    """How far the chosen composition is above the best of other rows of the same rounds, in `judged` or what it was
    chosen by."""
    choice = _chosen(half, work, quality, of)
    if choice is None:
        return None
    judged = judged or quality
    return _lead(choice.has(judged), _value(envelope(over(half.points), choice.work, judged)))


def _composed(point: Point) -> bool:
    return " x " in point.family


def _skipping_ours(point: Point) -> bool:
    """Steps skipped by the pack's own attention, not a sampler with fewer of them."""
    return " x sparse, ours" in point.family and point.family.startswith(("easycache", "forecast", "spread"))


def _alone(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if " x " not in point.family]


def _sparse_alone(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.family.startswith("sparse, ours")]


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
        work: _judge(table, lambda half, work=work: _lead_of_chosen(half, work, quality, _composed, _alone))  # type: ignore[misc]
        for work in MIDDLE_WORKS
        if _reached(table, _alone, work, quality) and work <= _dearest(table, _composed)
    }
    verdict = _at_least(target, behind, 0.0, _DIGITS[quality])
    beyond = [f"{work:g}" for work in MIDDLE_WORKS if work > _dearest(table, _composed)]
    if not beyond:
        return verdict
    # What was not measured misses nothing, and meets nothing.
    found = f"{verdict.found}; none measured at {', '.join(beyond)}"
    return replace(verdict, met=None if verdict.met else verdict.met, found=found)


def _dearest(table: Table, of: Callable[[Point], bool]) -> float:
    """The highest work of a composition: what lies above was not tried."""
    return max((p.work for half in table.halves for p in half.points if of(p) and p.acts), default=0.0) + SAME_WORK


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
    words, met = [], []
    for work in LOW_WORKS:
        if not _reached(table, _dense, work, "psnr"):
            continue
        chosen = [_by_margin(half, work) for half in table.halves]
        gain, part = (
            _judge(table, lambda half, by=by: None if (c := _by_margin(half, work)) is None else by(c))  # type: ignore[misc]  # noqa: B023
            for by in (_gain, _part)
        )
        if gain.value is None or part.value is None:
            words.append(f"{work:g}: not reached")
            met.append(False)
            continue
        names = " / ".join(dict.fromkeys(choice.family for choice in chosen if choice is not None))
        words.append(f"{work:g}: {gain.words(1)} dB, {part.words(2, signed=False)} of 1 - SSIM ({names})")
        met.append(_margin(gain.value, part.value) >= 0.0)
    return Verdict(target, all(met) if met else None, ", ".join(words) or "no common work")


def _by_margin(half: Half, work: float) -> _Choice | None:
    """The composition that does both on the half that chooses: one family, by one of its fronts."""
    found: list[tuple[float, _Choice]] = []
    for quality in ("psnr", "ssim"):
        there = _choices(half.chosen_by, half.chosen_by, work, quality, _composed)
        here = {choice.family: choice for choice in _choices(half.chosen_by, half.points, work, quality, _composed)}
        for choice in there:
            gain, part = _gain(choice), _part(choice)
            if gain is not None and part is not None and choice.family in here:
                found.append((_margin(gain, part), here[choice.family]))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _gain(choice: _Choice) -> float | None:
    """Its lead in dB over the best sampler with fewer steps."""
    return _lead(choice.has("psnr"), _value(envelope(_dense(choice.points), choice.work, "psnr")))


def _part(choice: _Choice) -> float | None:
    """Its part of that sampler's 1 - SSIM."""
    ours, theirs = choice.has("ssim"), _value(envelope(_dense(choice.points), choice.work, "ssim"))
    return None if ours is None or theirs is None else (1 - ours) / (1 - theirs)


def _margin(gain: float, part: float) -> float:
    """By how much of the target the worse of both passes it; negative where it misses."""
    return min(gain / 2.0 - 1.0, 1.0 - part / 0.5)


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

    def lead(half: Half, work: float) -> float | None:
        known = replace(half, points=tuple(point for point in half.points if point.converged is not None))
        return _lead_of_chosen(known, work, "psnr", _composed, _dense, "converged")

    gains = {}
    for work in works:
        known = [[p for p in _dense(half.points) if p.converged is not None] for half in halves]
        if all(envelope(some, work, "converged") is not None for some in known):
            gains[work] = _judge(followed, lambda half, work=work: lead(half, work))  # type: ignore[misc]
    verdict = _at_least(target, gains, least, 1)
    return Verdict(target, verdict.met, f"{verdict.found}; {table.followed} rounds have that path")


def _not_below_sparse(table: Table, quality: str) -> Verdict:
    target = f"skipping with sparse attention never below sparse attention alone in {quality.upper()}"
    if not table.halves:
        return Verdict(target, None, _NOBODY)
    gains = {}
    for work in ALL_WORKS:
        if work <= _dearest(table, _skipping_ours):
            mean = _judge(
                table,
                lambda half, work=work: _lead_of_chosen(half, work, quality, _skipping_ours, _sparse_alone),  # type: ignore[misc]
            )
            if mean.value is not None:
                gains[work] = mean
    if not gains:
        return Verdict(target, None, "no common work")
    worst = min(gains, key=lambda work: gains[work].value or 0.0)
    value = gains[worst].value
    return Verdict(
        target, value is not None and value >= 0.0, f"at worst {gains[worst].words(_DIGITS[quality])}, at {worst:g}"
    )
