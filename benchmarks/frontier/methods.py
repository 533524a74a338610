"""The methods of the frontier: every row is a sampler, a number of steps, a sparse setting and a way to skip steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmarks.frontier.choices import MAIN, REAL, SMALL, Skip, Solver, Sparse
from benchmarks.frontier.core_caches import CoreCache
from draftattention.draftattn_core import PAPER_TILE, Policy, Settings
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.step_cache import StepCacheSettings

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
