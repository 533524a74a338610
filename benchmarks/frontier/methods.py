"""The methods of the frontier: every row is a sampler, a number of steps, a sparse setting and a way to skip steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from draftattention.draftattn_core import PAPER_TILE, Policy, Settings
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.step_cache import StepCacheSettings

Solver = Literal["euler", "dpmpp_2m", "unipc"]
Sparse = Literal["ours", "paper", "sol"]
Skip = Literal["easycache", "forecast"]

# Tokens per block of the Sol-Attn recipe (arXiv 2607.24027), which walks tokens in raster order.
SOL_BLOCK = 64


@dataclass(frozen=True)
class Method:
    """One way to sample.

    Attributes:
        family: which line of the plot it belongs to; a family's points differ in their settings only.
        solver, steps: of the sampler.
        sparse: which sparse attention, None for dense.
        density: of the sparse evaluations.
        warm: evaluations from the start that run dense.
        skip: how skipped evaluations are answered, None where every one is computed.
        threshold: of the skipping rule.
        first: evaluations from the start that are computed whatever the rule says.
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

    @property
    def name(self) -> str:
        """Short and unique."""
        words = [f"{self.solver} {self.steps}"]
        if self.sparse is not None:
            words.append(f"{self.sparse} {self.density:g} warm {self.warm}")
        if self.skip is not None:
            words.append(f"{self.skip} {self.threshold:g} first {self.first}")
        return ", ".join(words)

    def settings(self) -> Settings:
        """As the pack's own node would make them."""
        return replace(self._attention(), skip=self._skip())

    def _skip(self) -> StepCacheSettings:
        if self.skip is None:
            return StepCacheSettings()
        # EasyCache as published knows no bound on skips in a row.
        most = None if self.skip == "easycache" else StepCacheSettings().max_skips
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
        return Settings(schedule=schedule)


@dataclass(frozen=True)
class Choice:
    """The settings that are tried at one number of steps.

    Attributes:
        fewer: numbers of steps of the dense rows.
        densities: of sparse attention alone; `warm` evaluations are dense.
        thresholds: of each skipping rule; `first` evaluations are computed.
        pairs: (threshold, density) of compositions with the forecast, and those with EasyCache.
    """

    fewer: tuple[int, ...]
    densities: tuple[float, ...]
    warm: tuple[int, ...]
    thresholds: dict[Skip, tuple[float, ...]]
    first: dict[Skip, tuple[int, ...]]
    pairs: dict[Skip, tuple[tuple[float, float], ...]]


CHOICES = {
    20: Choice(
        fewer=(4, 5, 6, 8, 10, 12),
        densities=(0.1, 0.2, 0.3, 0.45),
        warm=(1, 3),
        thresholds={"easycache": (0.03, 0.05, 0.1, 0.2), "forecast": (0.05, 0.08, 0.12, 0.2, 0.3)},
        first={"easycache": (3, 5), "forecast": (3,)},
        pairs={
            "easycache": ((0.05, 0.25), (0.05, 0.45), (0.1, 0.25)),
            "forecast": ((0.05, 0.3), (0.08, 0.2), (0.08, 0.4), (0.12, 0.3), (0.2, 0.2), (0.2, 0.4)),
        },
    ),
    4: Choice(
        fewer=(1, 2, 3),
        densities=(0.1, 0.2, 0.3, 0.45),
        warm=(0, 1),
        thresholds={"easycache": (0.05, 0.2), "forecast": (0.1, 0.5)},
        first={"easycache": (2,), "forecast": (2,)},
        pairs={"easycache": ((0.2, 0.3),), "forecast": ((0.5, 0.2), (0.5, 0.4))},
    ),
    8: Choice(
        fewer=(2, 3, 4, 5),
        densities=(0.1, 0.2, 0.3, 0.45),
        warm=(1, 2),
        thresholds={"easycache": (0.05, 0.1, 0.2), "forecast": (0.08, 0.15, 0.3)},
        first={"easycache": (2, 3), "forecast": (2,)},
        pairs={"easycache": ((0.1, 0.3),), "forecast": ((0.08, 0.3), (0.15, 0.2), (0.15, 0.4), (0.3, 0.3))},
    ),
    50: Choice(
        fewer=(8, 10, 13, 16, 20, 25, 30),
        densities=(0.1, 0.2, 0.3, 0.45),
        warm=(3, 8),
        thresholds={"easycache": (0.03, 0.05, 0.1, 0.2), "forecast": (0.02, 0.04, 0.08, 0.15)},
        first={"easycache": (5, 10), "forecast": (5,)},
        pairs={
            "easycache": ((0.05, 0.3), (0.1, 0.3)),
            "forecast": ((0.02, 0.3), (0.04, 0.2), (0.04, 0.4), (0.08, 0.3), (0.15, 0.3)),
        },
    ),
}
# A composition in which one lever does nothing is a single method under another name.
MOST_DENSITY = 0.6


def methods(steps: int) -> list[Method]:
    """All methods beside the dense run of `steps` Euler steps, those that decide most first."""
    choice = CHOICES[steps]
    base = Method("", steps=steps)
    made: list[Method] = []
    rules: tuple[Skip, ...] = ("forecast", "easycache")

    def add(found: Iterable[Method]) -> None:
        made.extend(method for method in found if method not in made)

    add(replace(base, family="dense, Euler", steps=fewer) for fewer in choice.fewer)
    for skip in rules:
        add(
            replace(base, family=skip, skip=skip, threshold=threshold, first=first)
            for first in choice.first[skip]
            for threshold in choice.thresholds[skip]
        )
    add(
        replace(base, family="sparse, ours", sparse="ours", density=density, warm=warm)
        for warm in choice.warm
        for density in choice.densities
    )
    for skip in rules:
        add(
            replace(
                base,
                family=f"{skip} x sparse, ours",
                sparse="ours",
                density=density,
                warm=first,
                skip=skip,
                threshold=threshold,
                first=first,
            )
            for first in choice.first[skip][:1]
            for threshold, density in choice.pairs[skip]
        )
    second: tuple[Solver, ...] = ("dpmpp_2m", "unipc")
    for solver in second:
        # The same sampler with all its steps stands there too: it shows how far the two references are apart.
        add(replace(base, family=f"dense, {solver}", solver=solver, steps=fewer) for fewer in (*choice.fewer, steps))
    others: tuple[Sparse, ...] = ("paper", "sol")
    for sparse in others:
        add(
            replace(base, family=f"sparse, {sparse}", sparse=sparse, density=density, warm=choice.warm[-1])
            for density in choice.densities
        )
        add(
            replace(
                base,
                family=f"forecast x sparse, {sparse}",
                sparse=sparse,
                density=density,
                warm=choice.first["forecast"][0],
                skip="forecast",
                threshold=threshold,
                first=choice.first["forecast"][0],
            )
            for threshold, density in choice.pairs["forecast"][:2]
        )
    return made


def composed(method: Method) -> bool:
    """Whether a method uses both levers."""
    return method.sparse is not None and method.skip is not None
