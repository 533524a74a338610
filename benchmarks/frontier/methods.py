"""The methods of the frontier: every row is a sampler, a number of steps, a sparse setting and a way to skip steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from benchmarks.frontier.core_caches import CoreCache
from draftattention.draftattn_core import PAPER_TILE, Policy, Settings
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.step_cache import StepCacheSettings

Solver = Literal["euler", "dpmpp_2m", "uni_pc"]
Sparse = Literal["ours", "paper", "sol", "budgets"]
Skip = Literal["easycache", "forecast", "spread"]

# Tokens per block of the Sol-Attn recipe (arXiv 2607.24027), which walks tokens in raster order.
SOL_BLOCK = 64


@dataclass(frozen=True)
class Method:
    """One way to sample.

    Attributes:
        family: which line of the plot it belongs to; a family's points differ in their settings only.
        solver, steps: of the sampler.
        sparse: which sparse attention, None for dense; "budgets" is "ours" with densities by measured error.
        density: of the sparse evaluations.
        warm: evaluations from the start that run dense.
        skip: how skipped evaluations are answered, None where every one is computed.
        threshold: of the skipping rule.
        first: evaluations from the start that are computed whatever the rule says; of a plan, 0 is its first alone.
        max_skips: evaluations in a row that may be skipped, None for the rule's own default.
        share: of the steps that `spread` computes, None for the other rules.
        core: ComfyUI's own step cache with `threshold`, in place of `skip`.
    """

    family: str
    solver: Solver = "euler"
    steps: int = 20
    sparse: Sparse | None = None
    density: float = 1.0
    warm: int = 0
    skip: Skip | None = None
    threshold: float = 0.0
    first: int = 0
    max_skips: int | None = None
    share: float | None = None
    core: CoreCache | None = None

    @property
    def name(self) -> str:
        """Short and unique."""
        words = [f"{self.solver} {self.steps}"]
        if self.sparse is not None:
            words.append(f"{self.sparse} {self.density:g} warm {self.warm}")
        if self.share is not None:
            words.append(f"spread {self.share:g}" + (f" first {self.first}" if self.first else ""))
        elif self.skip is not None:
            words.append(f"{self.skip} {self.threshold:g} first {self.first}")
        if self.core is not None:
            words.append(f"ComfyUI's {self.core} {self.threshold:g}")
        if self.max_skips is not None:
            words.append(f"at most {self.max_skips} in a row")
        return ", ".join(words)

    def settings(self) -> Settings:
        """As the pack's own node would make them."""
        return replace(self._attention(), skip=self._skip())

    def _skip(self) -> StepCacheSettings:
        if self.skip is None:
            return StepCacheSettings()
        if self.share is not None:
            return StepCacheSettings(self.skip, first=self.first, share=self.share)
        # EasyCache as published knows no bound on skips in a row.
        most = None if self.skip == "easycache" else self.max_skips or StepCacheSettings().max_skips
        return StepCacheSettings(self.skip, self.threshold, self.first, max_skips=most)

    def _attention(self) -> Settings:
        if self.sparse is None:
            return Settings(schedule=constant(1.0))
        schedule = constant(self.density, warmup=self.warm / self.steps)
        if self.sparse == "paper":
            return Settings(policy=Policy.paper(), schedule=schedule, q_block=128, k_block=128, tile=PAPER_TILE)
        if self.sparse == "sol":
            policy = Policy(method="row", tail="mean", spread=False, keep_own=False)
            return Settings(
                policy=policy, schedule=schedule, auto_gain=False, q_block=SOL_BLOCK, k_block=SOL_BLOCK, order="raster"
            )
        return Settings(schedule=schedule, budgets="error" if self.sparse == "budgets" else "off")


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
        fewer={"euler": (6, 8, 10), "dpmpp_2m": (4, 5, 6, 8, 10), "uni_pc": (4, 5, 6, 8, 10)},
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
        spread_pairs={"budgets": (*SPEED_PAIRS, (0.5, 0.25)), "ours": ((0.4, 0.25),)},
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
NAMES: dict[Sparse, str] = {"ours": "ours", "budgets": "ours with budgets", "paper": "paper", "sol": "sol"}
# A composition in which one lever does nothing is a single method under another name.
MOST_DENSITY = 0.6


def methods(steps: int, *, real: bool = False, main: bool = False) -> list[Method]:
    """All methods beside the dense runs of `steps` steps.

    Args:
        real: those measured at a real size instead of on small grids.
        main: the main rows only, on small grids.
    """
    choice = (REAL if real else MAIN if main else SMALL)[steps]
    base = Method("", steps=steps)
    made: list[Method] = []

    def add(found: Iterable[Method]) -> None:
        made.extend(method for method in found if method not in made)

    dense: dict[Solver, str] = {"euler": "Euler", "dpmpp_2m": "dpmpp_2m", "uni_pc": "uni_pc"}
    for solver, fewer in choice.fewer.items():
        add(replace(base, family=f"dense, {dense[solver]}", solver=solver, steps=some) for some in fewer)
    for skip, settings in choice.skips.items():
        add(
            replace(base, family=skip, skip=skip, threshold=threshold, first=first, max_skips=most)
            for threshold, first, most in settings
        )
    add(replace(base, family="ComfyUI's EasyCache", core="EasyCache", threshold=threshold) for threshold in choice.core)
    for sparse, densities in choice.densities.items():
        add(
            replace(base, family=f"sparse, {NAMES[sparse]}", sparse=sparse, density=density, warm=choice.warm)
            for density in densities
        )
    for (skip, sparse), pairs in choice.pairs.items():
        first = choice.skips[skip][0][1]
        add(
            replace(
                base,
                family=f"{skip} x sparse, {NAMES[sparse]}",
                sparse=sparse,
                density=density,
                warm=first,
                skip=skip,
                threshold=threshold,
                first=first,
            )
            for threshold, density in pairs
        )
    spread = replace(base, family="spread", skip="spread")
    after_first = replace(spread, first=choice.first)
    add(replace(spread, share=share) for share in choice.spread)
    add(replace(after_first, share=share) for share in choice.first_spread)
    pairs = [(spread, sparse, pair) for sparse, some in choice.spread_pairs.items() for pair in some]
    pairs += [(after_first, "budgets", pair) for pair in choice.first_pairs]
    add(
        replace(
            plan,
            family=f"spread x sparse, {NAMES[sparse]}",
            sparse=sparse,
            density=density,
            warm=choice.warm,
            share=share,
        )
        for plan, sparse, (share, density) in pairs
    )
    add(
        replace(
            base,
            family=f"dpmpp_2m x sparse, {NAMES['budgets']}",
            solver="dpmpp_2m",
            steps=fewer,
            sparse="budgets",
            density=density,
            warm=1,
        )
        for fewer, density in choice.fewer_sparse
    )
    return made


def composed(method: Method) -> bool:
    """Whether a method uses two levers."""
    return " x " in method.family
