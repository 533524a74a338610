"""Part B: whole sampling runs against their dense twins, at equal work and with the same sampler and warm-up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, field

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from tqdm import tqdm

from benchmarks.quality.baselines import Rettention, ordered, searches
from benchmarks.quality.capture import attention_replaced, dense_attention, prompt_of
from benchmarks.quality.peer import kitchen_itself, load_peer, peer_itself
from benchmarks.quality.plan import DENSE_FEWER, Clock, EndToEndPlan, Scenario, name_scenarios
from benchmarks.quality.raw import WHOLE, Raw, Shard, definition, name_rounds, significant
from benchmarks.quality.rows import Row
from benchmarks.quality.selection import Chosen, Source, choose, probed_tails
from demo.latent import latent_to_rgb
from demo.sample import sample
from draftattention.draftattn_core import Layout, TableCache, TokenGrid
from draftattention.draftattn_core.backends.call_kind import CallKind
from draftattention.draftattn_core.backends.registry import choose_backend
from draftattention.draftattn_core.method.rules.adaspa import SECOND_SEARCH
from draftattention.draftattn_core.run.probe import HeadTails
from draftattention.draftattn_core.views.metrics import flicker, psnr, ssim


@dataclass(frozen=True)
class Setting:
    """What a cell shares with its dense twin, but for the seed."""

    grid: TokenGrid
    steps: int
    warmup: float
    cfg: float

    @property
    def dense_steps(self) -> int:
        return round(self.warmup * self.steps)


@dataclass(frozen=True)
class Run:
    """One sampling run: frames uint8 (T, H, W, 3), wall seconds, and the work of its sparse calls (0 if none)."""

    frames: Tensor
    seconds: float
    executed: float = 0.0


@dataclass(frozen=True)
class Scores:
    """A run against its dense twin. `executed` is the mean share of work of the sparse calls, tail included."""

    executed: float
    psnr: float
    ssim: float
    flicker: float
    seconds: float


class SparseRun:
    """Attention function of one row in one run: dense while warming up, then at equal work.

    Raises, when called:
        ValueError: if the row cannot run at the target.
    """

    def __init__(self, row: Row, target: float, setting: Setting, cache: TableCache) -> None:
        self.row, self.target, self.setting, self.cache = row, target, setting, cache
        self.tails: dict[int, HeadTails] = {}
        self.executed: list[float] = []
        # By layer and branch, for rows that go on with what they chose before.
        self.chosen: dict[tuple[int, int], tuple[Chosen, bool]] = {}
        self.visits: Counter[tuple[int, int]] = Counter()
        self.rettention = Rettention(row, target, setting.dense_steps, setting.steps)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int, step: int) -> Tensor:
        at = layer, self.visits[layer, step]
        self.visits[layer, step] += 1
        if self.row.kind == "rettention":
            return self._rettention(q, k, v, at, step)
        if step < self.setting.dense_steps:
            return dense_attention(q, k, v, layer, step)
        source, order = ordered(self.row, Source(q, k, v, self.cache.get(self._layout, q.device)))
        if (self.row.auto_tail or self.row.fits_gain) and layer not in self.tails:
            self.tails[layer] = probed_tails(self.row, source, self.target, seed=layer)
        chosen = self._choose(source, at, step)
        if chosen is None:
            raise ValueError(f"{self.row.name} cannot run at {self.target:.0%}: its tail and forced blocks cost more")
        self.executed.append(chosen.exact + chosen.tail_work)
        if chosen.shared_tail:
            sol_attn = load_peer()
            if sol_attn is None:
                raise ValueError("comfy-kitchen is not installed")
            if self.row.order != "raster":
                return kitchen_itself(q, k, v, self._layout, chosen.parameter, chosen.tails.gains)
            if self.row.kind == "peer_topk":
                return peer_itself(sol_attn, q, k, v, ratio=chosen.parameter)
            return peer_itself(sol_attn, q, k, v, tau=chosen.parameter)
        out = self._masked(source, chosen)
        return out if order is None else order.after(out)

    @property
    def _layout(self) -> Layout:
        return self.row.layout(self.setting.grid)

    @staticmethod
    def _masked(source: Source, chosen: Chosen) -> Tensor:
        q, layout = source.q, source.tables.layout
        problem = CallKind(q.device, q.dtype, q.shape[-1], layout.q_block, layout.k_block)
        return choose_backend("auto", problem).attend(source.request(chosen))

    def _choose(self, source: Source, at: tuple[int, int], step: int) -> Chosen | None:
        known, late = self.chosen.get(at, (None, False))
        progress = step / self.setting.steps
        if not searches(self.row, progress, known, late):
            return known
        found = choose(self.row, source, self.target, self.tails.get(at[0]))
        if found is not None and self.row.policy.method == "adaspa":
            self.chosen[at] = found, progress >= SECOND_SEARCH
        return found

    def _rettention(self, q: Tensor, k: Tensor, v: Tensor, at: tuple[int, int], step: int) -> Tensor:
        if step < self.rettention.first:
            return dense_attention(q, k, v, at[0], step)
        source = Source(q, k, v, self.cache.get(self._layout, q.device))
        out, work = self.rettention.attend(
            source, at, step, lambda: dense_attention(q, k, v, at[0], step), lambda chosen: self._masked(source, chosen)
        )
        if step >= self.setting.dense_steps:
            self.executed.append(work)
        return out


def run_dense(
    model: WanTransformer3DModel, setting: Setting, seed: int, steps: int, on_step: Callable[[], None] = lambda: None
) -> Run:
    """A dense run of `steps` steps: the twin, or with fewer of them a cheaper run from the same noise."""
    return _run(model, setting, seed, steps, on_step)


def run_sparse(
    model: WanTransformer3DModel,
    row: Row,
    target: float,
    setting: Setting,
    seed: int,
    cache: TableCache,
    on_step: Callable[[], None] = lambda: None,
) -> Run:
    """One row's run. Raises ValueError as `SparseRun` does."""
    function = SparseRun(row, target, setting, cache)
    with attention_replaced(model, function):
        run = _run(model, setting, seed, setting.steps, on_step)
    return Run(run.frames, run.seconds, sum(function.executed) / max(1, len(function.executed)))


def _run(model: WanTransformer3DModel, setting: Setting, seed: int, steps: int, on_step: Callable[[], None]) -> Run:
    start = time.perf_counter()
    latent = sample(
        model,
        prompt_of(seed),
        setting.grid.as_tuple(),
        steps=steps,
        seed=seed,
        cfg=setting.cfg,
        callback=lambda *_: on_step(),
    )
    frames = torch.from_numpy(latent_to_rgb(latent)[0])
    return Run(frames, time.perf_counter() - start)


def compare(run: Run, twin: Run) -> Scores:
    mine, reference = run.frames.float() / 255, twin.frames.float() / 255
    return Scores(run.executed, psnr(mine, reference), ssim(mine, reference), flicker(mine, reference), run.seconds)


def steps_at_equal_compute(setting: Setting, target: float, share: float) -> int:
    """Dense steps that cost what `setting.steps` cost with sparse attention, where attention is `share` of a step."""
    sparse = 1 - setting.dense_steps / setting.steps
    return max(1, round(setting.steps * (1 - share * sparse * (1 - target))))


@dataclass
class Cell:
    """One line of the end-to-end table: a scenario on one set of grids, scores by (grid, seed)."""

    plan: str
    row: str
    target: float
    steps: int
    warmup: float
    scores: dict[tuple[str, int], Scores] = field(default_factory=dict)

    def mean(self, value: Callable[[Scores], float]) -> float:
        return sum(map(value, self.scores.values())) / len(self.scores)


class _Known:
    """What a raw file says about the rounds of a plan."""

    def __init__(self, plan: EndToEndPlan, rows: dict[str, Row], raw: Raw, share: float) -> None:
        self.plan, self.rows, self.share = plan, rows, share
        keys = {
            self.key(scenario, grid, seed): (scenario, grid, seed)
            for grid, seed in plan.rounds
            for scenario in plan.scenarios
        }
        self.scores: dict[tuple[TokenGrid, int], dict[Scenario, Scores]] = {run: {} for run in plan.rounds}
        self.impossible: dict[Scenario, str] = {}
        self.seconds: dict[Scenario, float] = {}
        for record in raw.records():
            found = keys.get(tuple(record["unit"]))
            if found is None:
                continue
            scenario, grid, seed = found
            if record["cannot"] is not None:
                self.impossible[scenario] = record["cannot"]
            else:
                self.scores[grid, seed][scenario] = Scores(*record["scores"])
                self.seconds[scenario] = max(self.seconds.get(scenario, 0.0), record["took"])

    def key(self, scenario: Scenario, grid: TokenGrid, seed: int) -> tuple[object, ...]:
        """Everything the scores of a unit depend on beside what the whole file shares."""
        row, target, steps, warmup = scenario
        if row == DENSE_FEWER:
            fewer = steps_at_equal_compute(Setting(grid, steps, warmup, self.plan.cfg), target, self.share)
            does = f"{row} {fewer}"
        else:
            does = definition(self.rows[row], grid)
        return (str(grid), seed, prompt_of(seed), steps, warmup, target, does)

    def missing(self, grid: TokenGrid, seed: int) -> list[Scenario]:
        found = self.scores[grid, seed]
        return [s for s in self.plan.scenarios if s not in found and s not in self.impossible]


def run_plan(
    model: WanTransformer3DModel,
    plan: EndToEndPlan,
    rows: dict[str, Row],
    clock: Clock,
    raw: Raw,
    *,
    share: float,
    shard: Shard = WHOLE,
) -> None:
    """Every scenario of `plan` that `raw` lacks, in every round the clock has time for.

    Args:
        rows: by name.
        share: attention's share of a dense step, for the dense rows with fewer steps.
    """
    cache = TableCache(64)
    finished = 0
    total = len(shard.pick(plan.rounds)) * sum(steps for _, _, steps, _ in plan.scenarios)
    with tqdm(total=total, unit="step", desc=f"sampling, {plan.name} grids") as bar:
        for grid, seed in shard.pick(plan.rounds):
            # Read anew for each round: another process may have done some of it.
            known = _Known(plan, rows, raw, share)
            missing = known.missing(grid, seed)
            bar.update(sum(s[2] for s in plan.scenarios if s not in missing))
            if not missing:
                continue
            if clock.left(plan.share) < sum(known.seconds.get(s, 0.0) for s in missing):
                return
            since = clock.used
            twins: dict[int, Run] = {}
            for scenario in missing:
                row, target, steps, warmup = scenario
                if row != DENSE_FEWER and _lacks_peer(rows[row]):
                    bar.update(steps)
                    continue
                if not finished and clock.left(plan.share) < 0:
                    return
                setting = Setting(grid, steps, warmup, plan.cfg)
                if steps not in twins:
                    twins[steps] = run_dense(model, setting, seed, steps)
                cannot = None
                if row == DENSE_FEWER:
                    run = run_dense(model, setting, seed, steps_at_equal_compute(setting, target, share))
                    bar.update(steps)
                else:
                    try:
                        run = run_sparse(model, rows[row], target, setting, seed, cache, bar.update)
                    except ValueError as error:
                        cannot = str(error)
                scores = None if cannot else [significant(x) for x in astuple(compare(run, twins[steps]))]
                took, since = clock.used - since, clock.used
                unit = {"row": row, "unit": known.key(scenario, grid, seed), "took": round(took, 2)}
                raw.append({**unit, "scores": scores, "cannot": cannot})
            finished += 1


def _lacks_peer(row: Row) -> bool:
    return row.kind.startswith("peer") and load_peer() is None


def collect(plan: EndToEndPlan, rows: dict[str, Row], raw: Raw, *, share: float) -> tuple[list[Cell], list[str]]:
    """What `raw` holds of `plan`: only rounds in which every scenario was measured, so that all stand on the same.

    A scenario some round could not run is left out altogether. Where no round is whole, the fullest is taken.

    Returns:
        Cells with scores, and in words what is left out and why.
    """
    known = _Known(plan, rows, raw, share)
    impossible = dict(known.impossible)
    seen = {scenario for found in known.scores.values() for scenario in found}
    for scenario in plan.scenarios:
        if scenario[0] != DENSE_FEWER and _lacks_peer(rows[scenario[0]]) and scenario not in seen:
            impossible[scenario] = "comfy-kitchen is not installed"
    scenarios = [s for s in plan.scenarios if s not in impossible]
    whole = [run for run, found in known.scores.items() if all(s in found for s in scenarios)]
    started = [run for run, found in known.scores.items() if found and run not in whole]
    if started and not whole:
        fullest = max(started, key=lambda run: len(known.scores[run]))
        whole, started = [fullest], [run for run in started if run != fullest]
        impossible.update((s, "not measured yet") for s in scenarios if s not in known.scores[fullest])
    cells = []
    for scenario in plan.scenarios:
        if scenario not in impossible and whole:
            scores = {(str(grid), seed): known.scores[grid, seed][scenario] for grid, seed in whole}
            cells.append(Cell(plan.name, *scenario, scores))
    left_out = [
        f"{plan.name} grids, {row} at {target:.0%}, {steps} steps, warm-up {warmup:.0%}: {reason}"
        for (row, target, steps, warmup), reason in impossible.items()
    ]
    if len(whole) < len(plan.rounds):
        left_out.append(
            f"{plan.name} grids: {len(whole)} of {len(plan.rounds)} rounds measured; left out (grid, seed): "
            + name_rounds(run for run in plan.rounds if run not in whole)
            + (f"; of these measured in part and not in the table: {name_rounds(started)}" if started else "")
            + ("" if whole else f"; with them {name_scenarios(plan.scenarios)}")
        )
    return cells, left_out
