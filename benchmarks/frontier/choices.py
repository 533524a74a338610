"""Which settings are tried at which number of steps and size: what `methods` makes rows of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Solver = Literal["euler", "dpmpp_2m", "uni_pc"]
Sparse = Literal["ours", "paper", "sol", "budgets"]
Skip = Literal["easycache", "forecast", "spread"]


@dataclass(frozen=True)
class Choice:
    """The settings that are tried at one number of steps and one size.

    Attributes:
        fewer: numbers of steps of the dense rows, by sampler.
        densities: of each sparse attention alone.
        warm: dense evaluations at their start.
        skips: (threshold, first computed evaluations, most skips in a row) of each skipping rule alone.
        pairs: (threshold, density) of each (skipping rule, sparse attention) together; the first evaluations, computed
            and dense, are those of the rule's first entry in `skips`.
        spread: shares of the steps that are computed, the others forecast between them.
        spread_pairs: (share, density) of these with sparse evaluations, by sparse attention; as many evaluations run
            dense at the start as in `warm`.
        first: evaluations that other plans compute at the start: those of shares in `first_spread`, and of (share,
            density) in `first_pairs` with budgets.
        core: thresholds of ComfyUI's own EasyCache.
        fewer_sparse: (steps, density) of a second-order sampler with fewer steps whose evaluations are sparse by
            budgets, the composition that needs no cache.
    """

    fewer: dict[Solver, tuple[int, ...]]
    densities: dict[Sparse, tuple[float, ...]]
    warm: int
    skips: dict[Skip, tuple[tuple[float, int, int | None], ...]]
    pairs: dict[tuple[Skip, Sparse], tuple[tuple[float, float], ...]]
    core: tuple[float, ...] = ()
    fewer_sparse: tuple[tuple[int, float], ...] = ()
    spread: tuple[float, ...] = ()
    spread_pairs: Mapping[Sparse, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    first: int = 0
    first_spread: tuple[float, ...] = ()
    first_pairs: tuple[tuple[float, float], ...] = ()


# Pairs of (share, density) that are measured at every size: what a speed may be.
SPEED_PAIRS = ((0.25, 0.4), (0.3, 0.4), (0.4, 0.25), (0.4, 0.4), (0.5, 0.4), (0.5, 0.5))
FIRST_SPREAD = (0.4, 0.5, 0.6)
FIRST_PAIRS = ((0.4, 0.25), (0.4, 0.4), (0.5, 0.4), (0.5, 0.5), (0.6, 0.5))
_PEERS: dict[Sparse, tuple[float, ...]] = {"paper": (0.2, 0.45), "sol": (0.2, 0.45)}


def _peer_pairs(
    *, forecast: tuple[float, float], easycache: tuple[float, float]
) -> dict[tuple[Skip, Sparse], tuple[tuple[float, float], ...]]:
    """Both skipping rules with both published sparse attentions, one (threshold, density) each."""
    peers: tuple[Sparse, ...] = ("paper", "sol")
    settings: dict[Skip, tuple[float, float]] = {"forecast": forecast, "easycache": easycache}
    return {(skip, sparse): (pair,) for skip, pair in settings.items() for sparse in peers}


SMALL: dict[int, Choice] = {
    20: Choice(
        fewer={"euler": (4, 5, 6, 8, 10), "dpmpp_2m": (4, 5, 6, 8, 10), "uni_pc": (4, 5, 6, 8, 10)},
        densities={"ours": (0.1, 0.2, 0.45), "budgets": (0.15, 0.25, 0.4), **_PEERS},
        warm=1,
        skips={
            "forecast": ((0.05, 3, None), (0.08, 3, None), (0.2, 3, None), (0.4, 3, 6), (0.8, 2, 8)),
            # 4 of 20 is the share of 10 of 50, what the paper takes for Wan 2.1.
            "easycache": (
                (0.03, 3, None),
                (0.05, 3, None),
                (0.1, 3, None),
                (0.2, 3, None),
                (0.03, 5, None),
                (0.05, 4, None),
                (0.2, 4, None),
                (0.1, 2, None),
                (0.2, 2, None),
            ),
        },
        core=(0.05, 0.1, 0.2, 0.4),
        pairs={
            ("forecast", "ours"): ((0.03, 0.25), (0.08, 0.4), (0.2, 0.4)),
            ("forecast", "budgets"): (
                (0.03, 0.25),
                (0.05, 0.15),
                (0.05, 0.35),
                (0.05, 0.5),
                (0.08, 0.4),
                (0.2, 0.25),
                (0.2, 0.4),
            ),
            ("easycache", "ours"): ((0.05, 0.25), (0.05, 0.45)),
            ("easycache", "budgets"): ((0.05, 0.25),),
            **_peer_pairs(forecast=(0.05, 0.3), easycache=(0.05, 0.3)),
        },
        fewer_sparse=((8, 0.4), (10, 0.4)),
        spread=(0.2, 0.25, 0.3, 0.4, 0.5),
        spread_pairs={"budgets": (*SPEED_PAIRS, (0.5, 0.6), (0.6, 0.5), (0.65, 0.6)), "ours": ((0.4, 0.4),)},
        first=3,
        first_spread=FIRST_SPREAD,
        first_pairs=FIRST_PAIRS,
    ),
    4: Choice(
        fewer={"euler": (2, 3), "dpmpp_2m": (2, 3), "uni_pc": (2, 3)},
        densities={"ours": (0.1, 0.2, 0.45), "budgets": (0.15, 0.25, 0.4), **_PEERS},
        warm=1,
        skips={
            "forecast": ((0.1, 2, None), (0.5, 2, None)),
            "easycache": ((0.05, 2, None), (0.2, 2, None), (0.2, 1, None)),
        },
        core=(0.2,),
        pairs={
            ("forecast", "ours"): ((0.5, 0.2), (0.5, 0.45)),
            ("forecast", "budgets"): ((0.5, 0.15), (0.5, 0.4)),
            ("easycache", "ours"): ((0.2, 0.45),),
            ("easycache", "budgets"): ((0.2, 0.4),),
            **_peer_pairs(forecast=(0.5, 0.45), easycache=(0.2, 0.45)),
        },
        fewer_sparse=((3, 0.4),),
    ),
    8: Choice(
        fewer={"euler": (2, 3, 4, 5), "dpmpp_2m": (3, 4, 5), "uni_pc": (3, 4, 5)},
        densities={"ours": (0.1, 0.2, 0.45), "budgets": (0.15, 0.25, 0.4), **_PEERS},
        warm=1,
        skips={
            "forecast": ((0.08, 2, None), (0.15, 2, None), (0.4, 2, None)),
            "easycache": ((0.05, 2, None), (0.1, 2, None), (0.2, 2, None), (0.1, 1, None), (0.2, 3, None)),
        },
        core=(0.1, 0.2),
        pairs={
            ("forecast", "ours"): ((0.08, 0.3), (0.15, 0.45)),
            ("forecast", "budgets"): ((0.08, 0.25), (0.15, 0.4), (0.4, 0.4)),
            ("easycache", "ours"): ((0.1, 0.3),),
            ("easycache", "budgets"): ((0.1, 0.25),),
            **_peer_pairs(forecast=(0.08, 0.3), easycache=(0.1, 0.3)),
        },
        fewer_sparse=((5, 0.4),),
        spread=(0.5, 0.6, 0.75),
        spread_pairs={"budgets": ((0.5, 0.4), (0.6, 0.4), (0.75, 0.4))},
    ),
    50: Choice(
        fewer={"euler": (8, 13, 20, 25), "dpmpp_2m": (8, 13, 20), "uni_pc": (8, 13, 20)},
        densities={"ours": (0.2, 0.45), "budgets": (0.15, 0.3), "paper": (0.3,), "sol": (0.3,)},
        warm=3,
        skips={
            "forecast": ((0.02, 5, None), (0.05, 5, None), (0.15, 5, 8)),
            # 10 of 50 is what the paper takes for Wan 2.1.
            "easycache": (
                (0.03, 5, None),
                (0.05, 5, None),
                (0.1, 5, None),
                (0.02, 10, None),
                (0.03, 10, None),
                (0.05, 10, None),
                (0.1, 10, None),
            ),
        },
        core=(0.1, 0.2),
        pairs={
            ("forecast", "ours"): ((0.02, 0.3), (0.05, 0.4)),
            ("forecast", "budgets"): ((0.02, 0.2), (0.05, 0.3), (0.15, 0.4)),
            ("easycache", "ours"): ((0.05, 0.3),),
            ("easycache", "budgets"): ((0.05, 0.3),),
            **_peer_pairs(forecast=(0.05, 0.3), easycache=(0.05, 0.3)),
        },
        fewer_sparse=((20, 0.3),),
        spread=(0.12, 0.2, 0.3, 0.4, 0.5),
        spread_pairs={"budgets": ((0.2, 0.4), (0.3, 0.4), (0.4, 0.4), (0.5, 0.5), (0.6, 0.6))},
        first=8,
        first_spread=(0.3,),
        first_pairs=((0.3, 0.4), (0.4, 0.4)),
    ),
}
# A real size costs seven times as much an evaluation: fewer rows, and all pairs that a speed may be.
REAL: dict[int, Choice] = {
    20: Choice(
        fewer=SMALL[20].fewer,
        densities={"ours": (0.25,), "budgets": (0.25,), "paper": (0.25,), "sol": (0.25,)},
        warm=1,
        skips={
            "forecast": ((0.03, 3, None), (0.1, 3, None)),
            "easycache": (
                (0.05, 3, None),
                (0.03, 3, None),
                (0.1, 3, None),
                (0.2, 3, None),
            ),
        },
        core=(0.2,),
        pairs={
            ("forecast", "budgets"): (*SMALL[20].pairs["forecast", "budgets"], (0.03, 0.15)),
            ("forecast", "ours"): ((0.03, 0.25),),
            ("easycache", "ours"): ((0.05, 0.25),),
            ("easycache", "budgets"): ((0.05, 0.25),),
            **_peer_pairs(forecast=(0.05, 0.3), easycache=(0.05, 0.3)),
        },
        fewer_sparse=((8, 0.25),),
        spread=(0.3, 0.4, 0.5),
        spread_pairs={"budgets": (*SPEED_PAIRS, (0.5, 0.25), (0.65, 0.6), (0.75, 0.6)), "ours": ((0.4, 0.25),)},
        first=3,
        first_spread=FIRST_SPREAD,
        first_pairs=FIRST_PAIRS,
    ),
    4: SMALL[4],
}
# The main rows, for a second checkpoint: every lever, EasyCache at all its settings, and all pairs that a speed may be.
MAIN: dict[int, Choice] = {
    20: Choice(
        fewer=SMALL[20].fewer,
        densities={"ours": (0.2, 0.45), "budgets": (0.15, 0.25, 0.4), "paper": (0.2, 0.45), "sol": (0.2, 0.45)},
        warm=1,
        skips={
            "forecast": ((0.05, 3, None), (0.2, 3, None), (0.4, 3, 6)),
            "easycache": SMALL[20].skips["easycache"],
        },
        core=SMALL[20].core,
        pairs={
            ("forecast", "budgets"): ((0.05, 0.35), (0.2, 0.4)),
            ("easycache", "budgets"): SMALL[20].pairs["easycache", "budgets"],
        },
        fewer_sparse=SMALL[20].fewer_sparse[:1],
        spread=SMALL[20].spread,
        spread_pairs={"budgets": SMALL[20].spread_pairs["budgets"]},
        first=3,
        first_spread=FIRST_SPREAD,
        first_pairs=FIRST_PAIRS,
    ),
    4: SMALL[4],
}
