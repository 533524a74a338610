"""Also tried: rows that are no lever of the pack, each beside the methods that it would improve or replace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from benchmarks.frontier.core_caches import CoreCache
from benchmarks.frontier.methods import Method, methods
from benchmarks.frontier.plan import Scenario
from benchmarks.quality.plan import SMALL_GRIDS
from benchmarks.quality.raw import Raw, Record
from draftattention.draftattn_core import Settings
from draftattention.draftattn_core.run.schedule import Schedule


@dataclass
class Leaning:
    """Whether the evaluation under way follows one that was answered without the model."""

    now: bool = False


@dataclass(frozen=True)
class LeaningSchedule(Schedule):
    """A schedule with another density where the forecast leans on the evaluation.

    Attributes:
        raised: density there; None for the schedule's own.
        leaning: told by the step cache.
    """

    raised: float | None = None
    leaning: Leaning = field(default_factory=Leaning)

    def density(self, progress: float, layer: int, layers: int) -> float | None:
        own = super().density(progress, layer, layers)
        return own if own is None or self.raised is None or not self.leaning.now else max(own, self.raised)


@dataclass(frozen=True)
class Tried(Method):
    """A method of the frontier with something more.

    Attributes:
        anchor_every: every so many evaluations from the first one after the dense start, both the dense and the sparse
            output are made and their difference is added to the sparse outputs that follow; 0 for never.
        raised: density of evaluations that follow answered ones; None for that of all.
        last: density of the last evaluation; None for that of all, 1 for dense.
    """

    anchor_every: int = 0
    raised: float | None = None
    last: float | None = None

    @property
    def name(self) -> str:
        words = [super().name]
        if self.anchor_every:
            words.append(f"anchored every {self.anchor_every}")
        if self.raised is not None:
            words.append(f"{self.raised:g} after answered steps")
        if self.last is not None:
            words.append(f"last step {'dense' if self.last >= 1.0 else format(self.last, 'g')}")
        return ", ".join(words)

    def settings(self) -> Settings:
        made = super().settings()
        points = made.schedule.points
        if self.last is not None:
            at = 1.0 - 1.0 / self.steps
            points = (*points, (at, points[-1][1]), (at, self.last))
        return replace(made, schedule=LeaningSchedule(points, raised=self.raised))


# What a tried row is held against: the family of the frontier that it would improve or replace.
AGAINST = {
    "ComfyUI's LazyCache": "easycache",
    "sparse, ours, anchored": "sparse, ours",
    "sparse, ours, dense last step": "sparse, ours",
    "forecast x sparse, ours, dense last step": "forecast x sparse, ours",
    "forecast x sparse, ours, denser where leant on": "forecast x sparse, ours",
}
BESIDE = (*dict.fromkeys(AGAINST.values()), "forecast")


def tried(steps: int) -> list[Method]:
    """The rows, in runs of `steps`. Skipping begins and dense starts end where they do in the frontier's own rows."""
    sparse = Tried("", steps=steps, sparse="ours", warm=1)
    both = Tried("", steps=steps, sparse="ours", warm=3, skip="forecast", first=3)
    core = Tried("", steps=steps)
    return [
        *(
            replace(core, family=f"ComfyUI's {cache}", core=cache, threshold=threshold)
            for cache, thresholds in _CORE.items()
            for threshold in thresholds
        ),
        *(
            replace(sparse, family="sparse, ours, anchored", density=density, anchor_every=every)
            for density, every in ((0.2, 4), (0.1, 7))
        ),
        *(replace(sparse, family="sparse, ours, dense last step", density=density, last=1.0) for density in (0.1, 0.2)),
        *(
            replace(both, family="forecast x sparse, ours, dense last step", threshold=threshold, density=d, last=1.0)
            for threshold, d in ((0.03, 0.25), (0.2, 0.4))
        ),
        *(
            replace(
                both,
                family="forecast x sparse, ours, denser where leant on",
                threshold=threshold,
                density=density,
                raised=raised,
            )
            for threshold, density, raised in ((0.03, 0.15, 0.3), (0.08, 0.2, 0.4), (0.2, 0.2, 0.5))
        ),
    ]


# Thresholds of the nodes; 0.2 is their default.
_CORE: dict[CoreCache, tuple[float, ...]] = {"LazyCache": (0.1, 0.2)}


@dataclass(frozen=True)
class RawBeside(Raw):
    """A raw file of its own, read together with one that others write.

    Attributes:
        other: what was measured elsewhere counts as known.
    """

    other: Raw

    def records(self) -> list[Record]:
        return self.other.records() + super().records()


@dataclass(frozen=True)
class TriedScenario(Scenario):
    """Its rows stand beside methods of the frontier, measured in the same rounds."""

    @property
    def name(self) -> str:
        return "also tried"

    @property
    def methods(self) -> list[Method]:
        return [*(method for method in methods(self.steps) if method.family in BESIDE), *tried(self.steps)]


def tried_scenario() -> TriedScenario:
    return TriedScenario("calm", 20, SMALL_GRIDS, (0,))
