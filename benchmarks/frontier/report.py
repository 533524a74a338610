"""From units to the frontier's table: means over whole rounds, fronts by family, the verdicts on its targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.frontier.fronts import Point, at_work, by_family, envelope
from benchmarks.frontier.methods import MOST_DENSITY
from benchmarks.frontier.plan import Scenario
from benchmarks.frontier.rounds import whole_rounds
from benchmarks.frontier.work import Ledger
from benchmarks.quality.raw import Record
from benchmarks.verdict import Verdict

WORKS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
LOW_WORKS = (0.2, 0.25, 0.3)
LEAST_SKIPPED = 0.2
FORECASTS = {"spread": "planned forecasts (spread)", "forecast": "forecasts by threshold"}


@dataclass(frozen=True)
class Table:
    """One scenario under one attention share.

    Attributes:
        scenario: what was measured.
        rounds: (grid, seed) of the whole rounds it stands on.
        share: attention's share of a dense evaluation: one number, or None for each grid's own.
        points: a mean for every method.
        judged: the points that verdicts go by, as the rounds that chose nothing measured them (see `held_out`).
    """

    scenario: Scenario
    rounds: tuple[tuple[str, int], ...]
    share: float | None
    points: tuple[Point, ...]
    judged: tuple[Point, ...]


def acts(record: Record) -> bool:
    """Whether both levers act in a composition: density at most `MOST_DENSITY`, a fifth of the evaluations skipped."""
    does, ledger = record["unit"][5], record["ledger"]
    if " x " not in record["family"]:
        return True
    asked = ledger["computed"] + ledger["answered"]
    fewer = does["skip"] is None or ledger["answered"] >= LEAST_SKIPPED * asked
    return bool(does["density"] <= MOST_DENSITY and fewer)


def rows(scenario: Scenario, records: list[Record], share_of: Callable[[str], float]) -> list[dict[str, object]]:
    """The rows of frontier.json: one per method and whole round.

    Args:
        share_of: attention's share of a dense evaluation on a grid.
    """
    found = []
    for (grid, seed), units in whole_rounds(scenario, records).items():
        for record in units:
            found.append(
                {
                    "model": scenario.model,
                    "method": record["name"],
                    "family": record["family"],
                    "steps": scenario.steps,
                    "work": round(Ledger(**record["ledger"]).work(scenario.steps, share_of(grid)), 4),
                    **record["scores"],
                    "psnr_converged_db": record["converged"],
                    "size": "real" if scenario.real else "small",
                    "grid": grid,
                    "seed": seed,
                    "attention_share": round(share_of(grid), 4),
                    "evaluations_computed": record["ledger"]["computed"],
                    "evaluations_answered": record["ledger"]["answered"],
                    "acts": acts(record),
                }
            )
    return found


def tabulate(
    scenario: Scenario, records: list[Record], share: float | None, share_of: Callable[[str], float]
) -> Table | None:
    """Means over the whole rounds; None if there is none.

    Args:
        share: attention's share for all grids; None takes that of `share_of`.
    """
    rounds = whole_rounds(scenario, records)
    if not rounds:
        return None
    of = share_of if share is None else (lambda grid: share)
    points = _means(scenario, rounds, list(rounds), of)
    seeds = sorted({seed for _, seed in rounds})
    first, second = ([where for where in rounds if where[1] in half] for half in (seeds[::2], seeds[1::2]))
    judged: tuple[Point, ...] = ()
    if second:
        judged = held_out(_means(scenario, rounds, first, of), _means(scenario, rounds, second, of))
    return Table(scenario, tuple(rounds), share, tuple(points), judged)


def _means(
    scenario: Scenario,
    rounds: dict[tuple[str, int], list[Record]],
    of: Sequence[tuple[str, int]],
    share_of: Callable[[str], float],
) -> list[Point]:
    # The converged path was made in some rounds only; all rows that stand beside it stand on the same.
    followed = [where for where in of if rounds[where][0]["converged"] is not None]
    points = []
    for index in range(len(rounds[of[0]])):
        records = [(grid, rounds[grid, seed][index]) for grid, seed in of]
        row = records[0][1]

        def mean(value: Callable[[str, Record], float]) -> float:
            return sum(value(grid, record) for grid, record in records) / len(records)  # noqa: B023

        paths = [rounds[where][index]["converged"] for where in followed]
        converged = None if not paths or None in paths else sum(paths) / len(paths)
        points.append(
            Point(
                row["name"],
                row["family"],
                mean(lambda grid, record: Ledger(**record["ledger"]).work(scenario.steps, share_of(grid))),
                mean(lambda _, record: record["scores"]["psnr_db"]),
                mean(lambda _, record: record["scores"]["ssim"]),
                mean(lambda _, record: record["scores"]["flicker"]),
                converged,
                all(acts(record) for _, record in records),
            )
        )
    return points


def held_out(choosing: Sequence[Point], reporting: Sequence[Point]) -> tuple[Point, ...]:
    """All points as one half of the rounds measures them; of compositions only those that are on their family's front
    on the other half. A composition in which one lever does nothing is left out."""
    kept = [point for point in reporting if " x " not in point.family]
    for family, members in by_family(choosing).items():
        if " x " not in family:
            continue
        acting = [point for point in members if point.acts]
        names = {
            point.method for point in acting if not any(o.work <= point.work and o.psnr > point.psnr for o in acting)
        }
        kept += [point for point in reporting if point.method in names]
    return tuple(kept)


def verdicts(table: Table) -> list[Verdict]:
    """The targets of this table's scenario, each with its number."""
    found = [_beats_easycache(table, family) for family in ("spread", "forecast")]
    if table.scenario.steps >= 20:
        found += [_composition_on_envelope(table, quality) for quality in ("psnr", "ssim")]
        found += [_beats_fewer_steps(table), _nearer_the_converged_path(table)]
    else:
        found += [_not_below_sparse(table, quality) for quality in ("psnr", "ssim")]
    return found


def _beats_easycache(table: Table, family: str) -> Verdict:
    families = by_family(table.points)
    gains: dict[float, float | None] = {}
    for work in (0.3, 0.4, 0.5):
        ours, theirs = (at_work(families.get(name, ()), work, "psnr") for name in (family, "easycache"))
        gains[work] = None if ours is None or theirs is None else ours - theirs
    target = f"{FORECASTS[family]} at least 5 dB over EasyCache at works 0.3, 0.4, 0.5"
    if all(gain is None for gain in gains.values()):
        return Verdict(target, None, "no common work")
    words = ", ".join(
        f"{work:g}: {'not reached' if gain is None else f'{gain:+.1f} dB'}" for work, gain in gains.items()
    )
    return Verdict(target, all(gain is not None and gain >= 5.0 for gain in gains.values()), words)


def _composition_on_envelope(table: Table, quality: str) -> Verdict:
    singles = [point for point in table.judged if " x " not in point.family]
    together = [point for point in table.judged if " x " in point.family]
    behind = {}
    for work in (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5):
        best, ours = envelope(singles, work, quality), at_work(together, work, quality)
        if best is not None:
            behind[work] = None if ours is None else ours - best[1]
    target = f"the best composition on or above every single method in {quality.upper()} at works 0.2 to 0.5"
    if not behind:
        return Verdict(target, None, "too few rounds to choose on one half and report on the other")
    digits = 1 if quality == "psnr" else 3
    words = ", ".join(
        f"{work:g}: {'not reached' if gain is None else f'{gain:+.{digits}f}'}" for work, gain in behind.items()
    )
    return Verdict(target, all(gain is not None and gain >= 0.0 for gain in behind.values()), words)


def _beats_fewer_steps(table: Table) -> Verdict:
    dense = [point for point in table.judged if point.family.startswith("dense")]
    together = [point for point in table.judged if " x " in point.family]
    target = "up to a work of 0.3, against the best sampler with fewer steps: PSNR + 2 dB and 1 - SSIM at most half"
    words, met = [], []
    for work in LOW_WORKS:
        best_psnr, best_ssim = (envelope(dense, work, quality) for quality in ("psnr", "ssim"))
        ours_psnr, ours_ssim = (at_work(together, work, quality) for quality in ("psnr", "ssim"))
        if best_psnr is None or best_ssim is None or ours_psnr is None or ours_ssim is None:
            continue
        gain, part = ours_psnr - best_psnr[1], (1 - ours_ssim) / (1 - best_ssim[1])
        words.append(f"{work:g}: {gain:+.1f} dB ({best_psnr[0]}), {part:.2f} of 1 - SSIM ({best_ssim[0]})")
        met.append(gain >= 2.0 and part <= 0.5)
    if not met:
        return Verdict(target, None, "not reached")
    return Verdict(target, all(met), ", ".join(words))


def _nearer_the_converged_path(table: Table) -> Verdict:
    """Between samplers the dense run of one of them is no judge. Only PSNR to the converged path is kept."""
    followed = [point for point in table.judged if point.converged is not None]
    dense = [point for point in followed if point.family.startswith("dense")]
    together = [point for point in followed if " x " in point.family]
    target = "up to a work of 0.3, beside the converged path: PSNR + 2 dB over the best sampler with fewer steps"
    gains = {}
    for work in LOW_WORKS:
        best, ours = envelope(dense, work, "converged"), at_work(together, work, "converged")
        if best is not None and ours is not None:
            gains[work] = ours - best[1], best[0]
    if not gains:
        return Verdict(target, None, "no round that judges has that path")
    words = ", ".join(f"{work:g}: {gain:+.1f} dB ({family})" for work, (gain, family) in gains.items())
    return Verdict(target, all(gain >= 2.0 for gain, _ in gains.values()), words)


def _not_below_sparse(table: Table, quality: str) -> Verdict:
    points = table.judged or table.points
    sparse = [p for p in points if p.family.startswith("sparse, ours")]
    ours = [p for p in points if " x sparse, ours" in p.family]
    target = f"compositions never below sparse alone in {quality.upper()}"
    gains = {}
    for work in WORKS:
        alone, together = at_work(sparse, work, quality), at_work(ours, work, quality)
        if alone is not None and together is not None:
            gains[work] = together - alone
    if not gains:
        return Verdict(target, None, "no common work")
    worst = min(gains, key=gains.__getitem__)
    digits, unit = (1, " dB") if quality == "psnr" else (3, "")
    return Verdict(target, gains[worst] >= 0.0, f"at worst {gains[worst]:+.{digits}f}{unit}, at {worst:g}")
