"""What a quick and a full run measure, in which order, and how long they may take."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from draftattention.draftattn_core import TokenGrid

DENSE_FEWER = "dense_fewer"

# (row, target, steps, warm-up); a plan lists first what must not be cut.
Scenario = tuple[str, float, int, float]


class Clock:
    """A time limit in minutes."""

    def __init__(self, minutes: float) -> None:
        self.start, self.minutes = time.monotonic(), minutes

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def left(self, share: float = 1.0) -> float:
        """Seconds until `share` of the limit is used up."""
        return 60 * self.minutes * share - self.used


@dataclass(frozen=True)
class CapturedPlan:
    """Part A: which calls are captured. `share` of the time limit may be used up by the end of it."""

    grids: tuple[TokenGrid, ...]
    seeds: tuple[int, ...]
    steps: int
    at_steps: tuple[int, ...]
    layers: tuple[int, ...]
    sampled: int
    targets: tuple[float, ...] = (0.05, 0.10, 0.20, 0.30)
    peer_checks: int = 1
    share: float = 1.0

    @property
    def runs(self) -> list[tuple[TokenGrid, int]]:
        """Grids take turns, so that a run cut short has seen both."""
        return [(grid, seed) for seed in self.seeds for grid in self.grids]

    @property
    def calls(self) -> list[tuple[TokenGrid, int, int, int]]:
        """(grid, seed, step, layer) in the order of work."""
        return [(*run, step, layer) for run in self.runs for step in self.at_steps for layer in self.layers]


@dataclass(frozen=True)
class EndToEndPlan:
    """Part B: rounds of (grid, seed); each round runs every scenario, so all rows are measured on the same pairs."""

    name: str
    grids: tuple[TokenGrid, ...]
    seeds: tuple[int, ...]
    scenarios: tuple[Scenario, ...]
    cfg: float
    share: float = 1.0

    @property
    def rounds(self) -> list[tuple[TokenGrid, int]]:
        return [(grid, seed) for seed in self.seeds for grid in self.grids]


@dataclass(frozen=True)
class Plan:
    name: str
    minutes: float
    captured: CapturedPlan | None
    end_to_end: tuple[EndToEndPlan, ...]
    left_out: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what can be measured by itself."""
        names = [part.name for part in self.end_to_end]
        return (*(("captured",) if self.captured is not None else ()), *(("end_to_end", *names) if names else ()))


BIG_GRIDS = (TokenGrid(9, 24, 40), TokenGrid(9, 26, 36))
# A third of the tokens with the blocks of the big grids: 24 query and 48 key blocks. With smaller blocks the tail,
# which costs 1 / block of dense work per pass, would be charged twice what it costs on real sizes.
SMALL_GRIDS = (TokenGrid(6, 16, 32), TokenGrid(7, 18, 25))

MAIN = ("sol", "paper", "ours")
VARIANTS = (
    "strips",
    "paper_oracle",
    "ours_oracle",
    "q128_k64_none",
    "q128_k64_mean",
    "q128_k64_linear0",
    "q128_k64_linear2",
    "gain_off",
    "auto_tail",
    "q128_k128_linear0",
    "q64_k64_linear0",
    "tile_1x8x16",
    "tile_8x4x4",
    "order_hilbert",
)


def quick_scenarios() -> tuple[Scenario, ...]:
    cells: list[Scenario] = [(row, d, 20, 0.25) for d in (0.1, 0.2, 0.3) for row in MAIN]
    cells += [("ours", d, 20, 0.0) for d in (0.1, 0.2, 0.3)]
    cells += [(row, 0.1, 20, 0.25) for row in (DENSE_FEWER, "gain_off", "strips", "q128_k64_none", "ours_oracle")]
    cells += [("paper", 0.2, 20, 0.0), ("ours", 0.2, 20, 0.1)]
    cells += [(row, 0.2, 4, w) for w in (0.25, 0.0) for row in (*MAIN, DENSE_FEWER)]
    return tuple(cells)


def main_scenarios() -> tuple[Scenario, ...]:
    """What the targets speak of, at 20 steps and at 4."""
    cells: list[Scenario] = [(row, d, 20, 0.25) for d in (0.1, 0.2, 0.3) for row in MAIN]
    cells += [("ours", d, 20, 0.0) for d in (0.1, 0.2, 0.3)]
    cells += [(row, d, 20, 0.25) for d in (0.1, 0.2) for row in (DENSE_FEWER, "gain_off")]
    cells += [(row, 0.2, 4, w) for w in (0.25, 0.0) for row in (*MAIN, DENSE_FEWER)]
    return tuple(cells)


def full_scenarios() -> tuple[Scenario, ...]:
    cells: list[Scenario] = []
    main = (*MAIN, "strips", DENSE_FEWER)
    for warmup in (0.25, 0.0, 0.1):
        cells += [(row, d, 20, warmup) for d in (0.1, 0.2, 0.3, 0.05) for row in main]
    cells += [(row, 0.1, 20, 0.25) for row in VARIANTS if row != "strips"]
    # 10 % of 4 steps is no step at all.
    cells += [(row, d, 4, w) for w in (0.25, 0.0) for d in (0.05, 0.1, 0.2, 0.3) for row in main]
    return tuple(cells)


def quick() -> Plan:
    return Plan(
        "quick",
        18.5,
        CapturedPlan(BIG_GRIDS, (0, 1), 8, (1, 6), (0, 2, 4), sampled=256, share=0.35),
        (EndToEndPlan("small", SMALL_GRIDS, (0, 1, 2, 3), quick_scenarios(), cfg=1.0),),
        (
            "captured calls: seeds 2-7, layers 1 and 3, the 20-step trajectory (quick follows one of 8 steps), "
            "comfy-kitchen itself on all but one call",
            "end to end: seeds 4-7, classifier-free guidance, grids of 8,000 tokens and more",
            *_missing(quick_scenarios(), full_scenarios()),
        ),
    )


def _missing(some: tuple[Scenario, ...], every: tuple[Scenario, ...]) -> list[str]:
    """In words, per steps and warm-up, which of `every` is not in `some`."""
    return [f"end to end, {text}" for text in _by_setting(s for s in every if s not in some)]


def name_scenarios(scenarios: Iterable[Scenario]) -> str:
    """Rows and targets in words, per steps and warm-up."""
    return "; ".join(_by_setting(scenarios))


def _by_setting(scenarios: Iterable[Scenario]) -> list[str]:
    groups: dict[tuple[int, float], list[str]] = {}
    for row, target, steps, warmup in scenarios:
        groups.setdefault((steps, warmup), []).append(f"{row} {target:.0%}")
    return [f"{steps} steps, warm-up {warmup:.0%}: {', '.join(names)}" for (steps, warmup), names in groups.items()]


def full(on_gpu: bool = False) -> Plan:
    """Everything at full size on a GPU; on a CPU what about four hours of one core allow, most important first."""
    seeds = tuple(range(8))
    if on_gpu:
        captured = CapturedPlan(
            BIG_GRIDS, seeds, 20, (1, 6, 11, 17), (0, 1, 2, 3, 4), sampled=512, peer_checks=8, share=0.3
        )
        peer: tuple[Scenario, ...] = (("peer_topk", 0.1, 20, 0.25), ("peer_tau", 0.1, 20, 0.25))
        everything = EndToEndPlan("big", BIG_GRIDS, seeds, (*full_scenarios(), *peer), cfg=2.0)
        return Plan("full", 175.0, captured, (everything,), ())
    first = main_scenarios()
    main = tuple((row, d, 20, 0.25) for d in (0.1, 0.2, 0.3) for row in MAIN)
    return Plan(
        "full",
        175.0,
        CapturedPlan(BIG_GRIDS, seeds, 20, (2, 9, 16), (0, 2, 4), sampled=256, peer_checks=2),
        (
            EndToEndPlan("small", SMALL_GRIDS, seeds, first, cfg=1.0),
            EndToEndPlan(
                "more", SMALL_GRIDS, seeds, tuple(s for s in full_scenarios() if s not in first), cfg=1.0, share=0.8
            ),
            EndToEndPlan("big", BIG_GRIDS, (0, 1), main, cfg=1.0),
        ),
        (
            "captured calls: layers 1 and 3, comfy-kitchen itself on all but two calls",
            "end to end: classifier-free guidance (a run on a GPU has guidance 2)",
            "end to end at 8,000 tokens and more: seeds 2-7, all rows but the main ones, all settings but 20 "
            "steps with 25% warm-up at 10, 20 and 30% (a GPU runs them)",
        ),
    )


def baselines() -> Plan:
    """Published systems, as published and with our tail behind them, at the work of the main rows."""
    systems = ("svg", "radial", "adaspa", "ear")
    rows = (*systems, *(f"{name}_tail" for name in systems), "tail_error", "paper", "ours")
    # Radial attention's narrowest mask keeps five sixths of a video this short, Re-ttention's a quarter to a half.
    narrow = tuple(row for row in rows if not row.startswith("radial"))
    cells: list[Scenario] = [(row, 0.3, 20, 0.25) for row in narrow]
    cells += [(row, 0.6, 20, 0.25) for row in (*narrow, "rettention")]
    cells += [(row, 0.9, 20, 0.25) for row in ("radial", "radial_tail", "paper", "ours")]
    return Plan(
        "baselines",
        60.0,
        CapturedPlan(
            BIG_GRIDS, (0, 1), 8, (1, 6), (0, 2, 4), sampled=256, targets=(0.2, 0.3, 0.65), peer_checks=0, share=0.35
        ),
        (EndToEndPlan("small", SMALL_GRIDS, (0, 1, 2, 3), tuple(cells), cfg=1.0),),
        ("captured calls: Re-ttention, whose sparse steps need a full one before them",),
    )


def big() -> Plan:
    """One seed at the real size, dense beside the main rows: what the small grids of the quick run cannot tell."""
    cells: list[Scenario] = [(row, 0.1, 20, 0.25) for row in ("ours", "paper", "gain_off", "sol")]
    cells += [(row, 0.2, 20, 0.25) for row in MAIN]
    cells += [("ours", 0.1, 20, 0.0), (DENSE_FEWER, 0.1, 20, 0.25), ("q128_k64_none", 0.1, 20, 0.25)]
    part = EndToEndPlan("big", BIG_GRIDS[:1], (0,), tuple(cells), cfg=1.0)
    return Plan("big", 7.5, None, (part,), ("everything but one seed on one grid: see the quick and the full run",))
