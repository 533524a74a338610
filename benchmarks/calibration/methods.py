"""Rows of part A: every method with what it is made from, in one list for each scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diffusers import WanTransformer3DModel

from benchmarks.calibration.calibration_runs import Kept, merged
from benchmarks.calibration.evaluation import Evaluation, Score
from benchmarks.calibration.plan import CalibrationRun, Captured
from benchmarks.calibration.published import (
    Energies,
    published,
    score_masks,
    score_portable,
    score_published,
    score_rettention,
)
from benchmarks.calibration.spend import figures_of, score_budgets, score_uniform
from benchmarks.quality.capture import prompt_of
from draftattention.draftattn_core import Settings, TableCache
from draftattention.draftattn_core.run.figures import CompleteFigures
from draftattention.draftattn_core.run.probe import DEFAULT_ROWS
from draftattention.draftattn_core.run.profile import MAIN

ORACLE_ROWS = 256
# A of CalibAtt's equation 7.
MASSES = (0.5, 0.65, 0.76, 0.84)
MASKS, PORTABLE = "CalibAtt, exact masks", "portable masks"
UNIFORM, ONLINE, PROFILE, ORACLE = "uniform", "online budgets", "profile, other seeds", "oracle"


@dataclass(frozen=True)
class Cell:
    """One method at one budget.

    Attributes:
        method: the row's name; budget: what was asked for.
        score: judges one evaluation, given the one before that online methods measure on.
        runs: what its figures come from, none for methods without any.
        masks: whether it takes masks of them, not a profile.
    """

    method: str
    budget: float
    score: Callable[[Evaluation, Evaluation], list[Score]]
    runs: tuple[CalibrationRun, ...] = ()
    masks: bool = False

    @property
    def key(self) -> str:
        return f"{self.method} | {self.budget:g} | {' '.join(run.key for run in self.runs)}"


class Cells:
    """Makes the cells of a scenario's seed; what needs a calibration run makes it when first judged."""

    def __init__(self, model: WanTransformer3DModel, scenario: Captured, kept: Kept, cache: TableCache) -> None:
        self.model, self.scenario, self.kept, self.cache = model, scenario, kept, cache
        self._online: dict[tuple[int, int], CompleteFigures] = {}
        self._oracle: dict[tuple[int, int], CompleteFigures] = {}
        self._profiles: dict[tuple[CalibrationRun, ...], CompleteFigures] = {}

    def of(self, seed: int) -> list[Cell]:
        """All cells for the judged run of `seed`."""
        plan = self.scenario
        cells = [Cell(UNIFORM, work, self._uniform(work)) for work in plan.uniform_works]
        for work in plan.works:
            cells.append(Cell(ONLINE, work, self._by(self._online_figures, work)))
            cells.append(Cell(ORACLE, work, self._by(self._oracle_figures, work)))
        for name, runs in self._profiles_of(seed).items():
            works = plan.works if name == PROFILE else plan.transfer_works
            cells += [Cell(name, work, self._by_profile(runs, work), runs) for work in works]
        if seed in plan.seeds[: plan.published_seeds]:
            cells += self._published()
        return cells

    def _profiles_of(self, seed: int) -> dict[str, tuple[CalibrationRun, ...]]:
        plan = self.scenario
        found = {PROFILE: plan.calibration, "profile, one run": plan.calibration[:1]}
        others = tuple(run for run in plan.calibration if run.prompt != prompt_of(seed))
        if others != plan.calibration:
            found["profile, other prompts only"] = others
        for steps in sorted({run.steps for run in plan.other_steps}, reverse=True):
            found[f"profile of {steps} steps"] = tuple(run for run in plan.other_steps if run.steps == steps)
        if plan.elsewhere:
            found[f"profile of {plan.elsewhere[0].grid}"] = plan.elsewhere
        if plan.other_sampler:
            found[f"profile of {plan.other_sampler[0].solver}"] = plan.other_sampler
        return found

    def _published(self) -> list[Cell]:
        plan, cells = self.scenario, []
        since = {second: second - first - 1 for first, second in plan.pairs}
        for target in plan.published:
            for row in published():
                cells.append(Cell(row.name, target, lambda e, b, r=row, t=target: score_published(r, e, b, t)))
            cells.append(
                Cell(
                    "Re-ttention", target,
                    lambda e, b, t=target: score_rettention(e, b, t, since[e.layers[0].call.step]),
                )
            )  # fmt: skip
        if plan.masks:
            runs = plan.masks
            for mass in MASSES:
                for repeats, name in ((True, MASKS), (False, f"{MASKS}, no repetition heads")):
                    by = self._by_masks(mass, repeats)
                    cells.append(Cell(name, mass, by, runs, masks=True))
            for tail, name in ((False, PORTABLE), (True, f"{PORTABLE} + our tail")):
                cells += [Cell(name, t, self._by_portable(runs, t, tail), runs, masks=True) for t in plan.works]
        return cells

    def _uniform(self, work: float) -> Callable[[Evaluation, Evaluation], list[Score]]:
        return lambda evaluation, before: score_uniform(self._online_figures(evaluation, before), evaluation, work)

    def _by(
        self, figures: Callable[[Evaluation, Evaluation], CompleteFigures], work: float
    ) -> Callable[[Evaluation, Evaluation], list[Score]]:
        return lambda evaluation, before: score_budgets(figures(evaluation, before), evaluation, work)

    def _by_profile(
        self, runs: tuple[CalibrationRun, ...], work: float
    ) -> Callable[[Evaluation, Evaluation], list[Score]]:
        return lambda evaluation, _: score_budgets(self.profile(runs), evaluation, work)

    def profile(self, runs: tuple[CalibrationRun, ...]) -> CompleteFigures:
        """Figures of several runs together."""
        if runs not in self._profiles:
            profile = merged([self.kept.profile(self.model, run) for run in runs])
            self._profiles[runs] = profile.complete(MAIN)
        return self._profiles[runs]

    def _online_figures(self, evaluation: Evaluation, before: Evaluation) -> CompleteFigures:
        return self._figures(self._online, before, DEFAULT_ROWS)

    def _oracle_figures(self, evaluation: Evaluation, before: Evaluation) -> CompleteFigures:
        return self._figures(self._oracle, evaluation, ORACLE_ROWS)

    @staticmethod
    def _figures(known: dict[tuple[int, int], CompleteFigures], of: Evaluation, rows: int) -> CompleteFigures:
        call = of.layers[0].call
        at = call.seed, call.step
        if at not in known:
            # Only the evaluation at hand is asked about.
            known.clear()
            known[at] = figures_of(of, rows)
        return known[at]

    def prepare(self, cells: list[Cell]) -> None:
        """Make the runs that these cells rest on, before another run is under way."""
        for runs, masks in dict.fromkeys((cell.runs, cell.masks) for cell in cells):
            for run in runs:
                self._energies(run) if masks else self.kept.profile(self.model, run)

    def _energies(self, run: CalibrationRun) -> Energies:
        at_steps = tuple(step for _, step in self.scenario.pairs)
        return self.kept.energies(self.model, run, at_steps, self.cache)

    def _by_masks(self, floor: float, repeats: bool) -> Callable[[Evaluation, Evaluation], list[Score]]:
        def score(evaluation: Evaluation, before: Evaluation) -> list[Score]:
            runs = [self._energies(run) for run in self.scenario.masks]
            return score_masks(evaluation, runs, floor, self.scenario.steps, repeats=repeats)

        return score

    def _by_portable(
        self, runs: tuple[CalibrationRun, ...], target: float, tail: bool
    ) -> Callable[[Evaluation, Evaluation], list[Score]]:
        def score(evaluation: Evaluation, before: Evaluation) -> list[Score]:
            tables = self.cache.get(Settings().layout(runs[0].grid), evaluation.layers[0].call.q.device)
            return score_portable(evaluation, [self._energies(run) for run in runs], tables, target, tail=tail)

        return score
