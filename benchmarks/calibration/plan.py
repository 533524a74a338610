"""What the bench measures, in the order of its worth: captured evaluations, then whole runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.frontier.choices import Solver
from benchmarks.quality.capture import prompt_of
from benchmarks.quality.plan import BIG_GRIDS, SMALL_GRIDS
from draftattention.draftattn_core import Policy, Settings, TokenGrid


@dataclass(frozen=True)
class CalibrationRun:
    """A dense run that a profile may be made from; its prompt is that of its seed."""

    grid: TokenGrid
    steps: int
    seed: int
    solver: Solver = "euler"

    @property
    def key(self) -> str:
        return f"{self.grid}-{self.steps}-{self.solver}-{self.seed}"

    @property
    def prompt(self) -> str:
        return prompt_of(self.seed)


@dataclass(frozen=True)
class Captured:
    """Part A: evaluations of dense runs whose attention every method answers.

    Attributes:
        steps: of the Euler path that is followed.
        pairs: (step whose calls online budgets were measured on, step that is judged), one for each bucket of progress.
        seeds: of the judged runs.
        calibration: runs that profiles are made from; none of `seeds`.
        elsewhere: runs on another grid. other_steps: runs of fewer steps, by their number. other_sampler: with another
            solver.
        works: target works of budgets; uniform_works: of one density for all heads; transfer_works: of profiles made
            under other conditions than the judged runs.
        published: target works of published methods, on the first `published_seeds` seeds.
        masks: runs that CalibAtt's masks are made from, none to leave them out; judged where published methods are.
    """

    name: str
    grid: TokenGrid
    steps: int
    pairs: tuple[tuple[int, int], ...]
    seeds: tuple[int, ...]
    calibration: tuple[CalibrationRun, ...]
    elsewhere: tuple[CalibrationRun, ...] = ()
    other_steps: tuple[CalibrationRun, ...] = ()
    other_sampler: tuple[CalibrationRun, ...] = ()
    works: tuple[float, ...] = (0.10, 0.15, 0.20, 0.30)
    transfer_works: tuple[float, ...] = (0.15, 0.30)
    uniform_works: tuple[float, ...] = (0.08, 0.10, 0.15, 0.20, 0.25, 0.30, 0.40, 0.50)
    published: tuple[float, ...] = (0.15, 0.30)
    published_seeds: int = 1
    masks: tuple[CalibrationRun, ...] = ()


@dataclass(frozen=True)
class Whole:
    """Part B: whole runs against their dense twins.

    Attributes:
        means: mean densities of the sparse evaluations; warm: dense ones at the start.
        timed: whether it is about processor time: the dense run is timed, too, and the run's own budgets are left out.
    """

    name: str
    grid: TokenGrid
    steps: int
    seeds: tuple[int, ...]
    calibration: tuple[CalibrationRun, ...]
    means: tuple[float, ...] = (0.15, 0.25)
    warm: int = 2
    timed: bool = False


@dataclass(frozen=True)
class Sensitivity:
    """Whether a measured weight for each layer beats plain absolute error.

    Attributes:
        at_steps: one for each bucket of progress.
        weighing: seeds that the weights are measured on; seeds: those that judge.
        works: mean works of the evaluations.
    """

    name: str
    grid: TokenGrid
    steps: int
    at_steps: tuple[int, ...]
    weighing: tuple[int, ...]
    seeds: tuple[int, ...]
    calibration: tuple[CalibrationRun, ...]
    works: tuple[float, ...] = (0.15, 0.25)


@dataclass(frozen=True)
class Priors:
    """What the mass need of a head says of its error, and what budgets from needs alone are worth.

    Attributes:
        steps, pairs, seeds: as in `Captured`, whose rows on the same evaluations stand beside these.
        made_from: runs whose needs at the judged steps are the prior; none of `seeds`.
        works: target works of budgets; densities: at which needs are compared with the errors of heads.
        dropped: no tail stands behind the kept blocks. Then other methods are measured beside the priors, too, one
            density for all at `uniform_works`.
    """

    name: str
    grid: TokenGrid
    steps: int
    pairs: tuple[tuple[int, int], ...]
    seeds: tuple[int, ...]
    made_from: tuple[CalibrationRun, ...]
    works: tuple[float, ...] = (0.10, 0.15, 0.20, 0.30)
    densities: tuple[float, ...] = (0.15, 0.30)
    dropped: bool = False
    uniform_works: tuple[float, ...] = (0.10, 0.15, 0.20, 0.30, 0.40, 0.60)

    @property
    def settings(self) -> Settings:
        return Settings(policy=Policy(tail="none")) if self.dropped else Settings()


@dataclass(frozen=True)
class PortableMasks:
    """Portable masks beside exact ones, on the grid that they were made on and on another.

    Attributes:
        other: another grid; what is served there was made on `grid`.
        at_steps: captured evaluations of the first of `seeds` that are judged.
        seeds: of whole runs, in their order of worth.
        calibration: runs that masks are made from, on `grid`.
        masses: A of CalibAtt's equation 7; whole runs take the first one.
    """

    name: str
    grid: TokenGrid
    other: TokenGrid
    steps: int
    at_steps: tuple[int, ...]
    seeds: tuple[int, ...]
    calibration: tuple[CalibrationRun, ...]
    masses: tuple[float, ...] = (0.5, 0.76)


Scenario = Captured | Whole | Sensitivity | Priors | PortableMasks

_PAIRS = {20: ((1, 2), (4, 7), (11, 13)), 8: ((0, 1), (2, 4), (5, 6))}
# Prompts of the seeds: 0 shapes, 1 pan, 2 both, 3 shapes, ...
_CALIBRATION_SEEDS = (3, 4, 5, 7)


def runs(grid: TokenGrid, steps: int, seeds: tuple[int, ...], solver: Solver = "euler") -> tuple[CalibrationRun, ...]:
    return tuple(CalibrationRun(grid, steps, seed, solver) for seed in seeds)


def scenarios(quick: bool) -> list[Scenario]:
    """In the order of work."""
    small, real = SMALL_GRIDS[0], BIG_GRIDS[0]
    on_small, on_real = runs(small, 20, _CALIBRATION_SEEDS), runs(real, 8, _CALIBRATION_SEEDS[:2])
    captured = Captured(
        "captured, small grid",
        small,
        20,
        _PAIRS[20],
        (0, 1, 2),
        on_small,
        other_steps=(*runs(small, 8, _CALIBRATION_SEEDS[:3]), *runs(small, 4, _CALIBRATION_SEEDS[:3])),
        other_sampler=runs(small, 20, _CALIBRATION_SEEDS[:2], "dpmpp_2m"),
    )
    whole = Whole("whole runs, small grid", small, 20, (0, 1), on_small)
    weighed = Sensitivity(
        "weight by layer, small grid", small, 20, (2, 7, 13), _CALIBRATION_SEEDS[:2], (0, 1, 2), on_small
    )
    masks = replace(captured, name="masks, small grid", masks=on_small[:3])
    priors = Priors("priors from needs, small grid", small, 20, _PAIRS[20], (0, 1, 2), on_small[:3])
    portable = PortableMasks("portable masks, three runs", small, SMALL_GRIDS[1], 20, (2, 7, 13), (0, 1), on_small[:3])
    if quick:
        # Parts of the whole plan: what is known of either is not measured again.
        return [replace(captured, seeds=(0,)), replace(whole, means=(0.25,)), replace(masks, seeds=(0,))]
    real_captured = Captured("captured, real size", real, 8, _PAIRS[8], (0, 1), on_real, on_small, published=())
    return [
        captured,
        weighed,
        whole,
        real_captured,
        masks,
        # No seed that the profile was made from.
        Whole("whole runs, real size", real, 20, (0, 1, 2, 6), on_real),
        Whole("processor time, real size", real, 4, (1,), on_real, means=(0.15,), warm=0, timed=True),
        replace(captured, name="from the real size to the small grid", elsewhere=on_real),
        replace(real_captured, name="published methods and masks, real size", published=(0.15,), masks=on_real),
        priors,
        replace(priors, name="priors from needs, no tail, small grid", dropped=True, seeds=(0, 1), works=(0.15, 0.30)),
        portable,
        replace(
            portable,
            name="portable masks, three runs of the other grid",
            grid=portable.other,
            other=portable.grid,
            seeds=(0,),
            calibration=runs(portable.other, 20, _CALIBRATION_SEEDS[:3]),
            masses=(0.5,),
        ),
        replace(portable, name="portable masks, one run", calibration=on_small[:1], at_steps=(2, 7), masses=(0.5,)),
    ]
