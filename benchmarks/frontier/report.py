"""From units to the frontier's table: means over whole rounds, each half of them as judge of the other's choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.frontier.fronts import Point
from benchmarks.frontier.methods import MOST_DENSITY
from benchmarks.frontier.plan import Scenario
from benchmarks.frontier.rounds import whole_rounds
from benchmarks.frontier.work import SHARES, Ledger
from benchmarks.quality.raw import Record

WORKS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
LEAST_SKIPPED = 0.2
# Attention shares of real models, by which the same runs are weighed again.
_OTHERS = tuple(share for share in SHARES.values() if share is not None)


@dataclass(frozen=True)
class Half:
    """Half of the seeds, judging.

    Attributes:
        rounds: how many.
        points: their means.
        chosen_by: the means of the other half, by which compositions are chosen.
    """

    rounds: int
    points: tuple[Point, ...]
    chosen_by: tuple[Point, ...]


@dataclass(frozen=True)
class Table:
    """One scenario under one attention share.

    Attributes:
        scenario: what was measured.
        rounds: (grid, seed) of the whole rounds it stands on.
        share: attention's share of a dense evaluation: one number, or None for each grid's own.
        points: a mean for every method.
        halves: what verdicts go by, each half as judge of the other's choices; empty where there is one seed.
        followed: of the rounds, how many have the converged path.
    """

    scenario: Scenario
    rounds: tuple[tuple[str, int], ...]
    share: float | None
    points: tuple[Point, ...]
    halves: tuple[Half, ...] = ()
    followed: int = 0


def acts(record: Record) -> bool:
    """Whether both levers act in a composition: density at most `MOST_DENSITY`, a fifth of the evaluations skipped."""
    does, ledger = record["unit"][5], record["ledger"]
    if " x " not in record["family"]:
        return True
    asked = ledger["computed"] + ledger["answered"]
    fewer = does["skip"] is None or ledger["answered"] >= LEAST_SKIPPED * asked
    return bool(does["density"] <= MOST_DENSITY and fewer)


def rows(scenario: Scenario, records: list[Record], share_of: Callable[[str], float]) -> list[dict[str, object]]:
    """The rows of frontier.json: one per method and whole round; `work_at` has its work at other attention shares.

    Args:
        share_of: attention's share of a dense evaluation on a grid.
    """
    found = []
    for (grid, seed), units in whole_rounds(scenario, records).items():
        for record in units:
            ledger = Ledger(**record["ledger"])
            found.append(
                {
                    "model": scenario.model,
                    "method": record["name"],
                    "family": record["family"],
                    "steps": scenario.steps,
                    "work": round(ledger.work(scenario.steps, share_of(grid)), 4),
                    "work_at": {f"{share:g}": round(ledger.work(scenario.steps, share), 4) for share in _OTHERS},
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
    halves: tuple[Half, ...] = ()
    if second:
        means = [tuple(_means(scenario, rounds, half, of)) for half in (first, second)]
        halves = Half(len(first), means[0], means[1]), Half(len(second), means[1], means[0])
    followed = sum(_followed(some) for some in rounds.values())
    return Table(scenario, tuple(rounds), share, tuple(points), halves, followed)


def _followed(records: list[Record]) -> bool:
    """Whether a round has the converged path for all that compositions are held against there."""
    return all(record["converged"] is not None for record in records if record["family"].startswith("dense"))


def _means(
    scenario: Scenario,
    rounds: dict[tuple[str, int], list[Record]],
    of: Sequence[tuple[str, int]],
    share_of: Callable[[str], float],
) -> list[Point]:
    # The converged path was made in some rounds only; all rows that stand beside it stand on the same.
    followed = [where for where in of if _followed(rounds[where])]
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
