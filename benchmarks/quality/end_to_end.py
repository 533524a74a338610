"""Part B: whole sampling runs against their dense twins, at equal work and with the same sampler and warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from tqdm import tqdm

from demo.latent import latent_to_rgb
from demo.sample import sample
from draftattn_core import TableCache, TokenGrid
from draftattn_core.backends.registry import Problem, choose_backend
from draftattn_core.metrics import flicker, psnr, ssim
from draftattn_core.policy import TailName

from .capture import attention_replaced, dense_attention, prompt_of
from .peer import load_peer, peer_itself
from .plan import DENSE_FEWER, Clock, EndToEndPlan, Scenario
from .rows import Row
from .selection import Source, choose, probed_tails


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
        self.tails: dict[int, tuple[TailName, ...]] = {}
        self.executed: list[float] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int, step: int) -> Tensor:
        if step < self.setting.dense_steps:
            return dense_attention(q, k, v, layer, step)
        source = Source(q, k, v, self.cache.get(self.row.layout(self.setting.grid), q.device))
        if self.row.auto_tail and layer not in self.tails:
            self.tails[layer] = probed_tails(self.row, source, self.target, seed=layer)
        chosen = choose(self.row, source, self.target, self.tails.get(layer))
        if chosen is None:
            raise ValueError(f"{self.row.name} cannot run at {self.target:.0%}: its tail and forced blocks cost more")
        self.executed.append(chosen.exact + chosen.tail_work)
        if chosen.shared_tail:
            sol_attn = load_peer()
            if sol_attn is None:
                raise ValueError("comfy-kitchen is not installed")
            if self.row.kind == "peer_topk":
                return peer_itself(sol_attn, q, k, v, ratio=chosen.parameter)
            return peer_itself(sol_attn, q, k, v, tau=chosen.parameter)
        problem = Problem(q.device, q.dtype, q.shape[-1], source.tables.layout.q_block, source.tables.layout.k_block)
        return choose_backend("auto", problem).attend(source.request(chosen.keep, chosen.tails))


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


def attention_share(model: WanTransformer3DModel, tokens: int) -> float:
    """Share of self-attention in the multiplications of one dense forward pass of `tokens` video tokens."""
    config = model.config
    width = config.num_attention_heads * config.attention_head_dim
    attention = 2 * tokens * tokens * width
    # self-attention's four projections, cross-attention's two on the video side, the feed-forward pair
    rest = tokens * (6 * width * width + 2 * width * config.ffn_dim)
    return attention / (attention + rest)


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


def run_plan(
    model: WanTransformer3DModel,
    plan: EndToEndPlan,
    rows: dict[str, Row],
    clock: Clock,
    *,
    share: float,
) -> tuple[list[Cell], list[str]]:
    """Every scenario of `plan` in every round the clock has time for.

    Args:
        rows: by name.
        share: attention's share of a dense step, for the dense rows with fewer steps.

    Returns:
        Cells with scores, and in words what was left out and why.
    """
    cells = {scenario: Cell(plan.name, *scenario) for scenario in plan.scenarios}
    impossible: dict[Scenario, str] = {}
    cache = TableCache(64)
    done, longest, rounds = 0, 0.0, plan.rounds
    total = len(rounds) * sum(steps for _, _, steps, _ in plan.scenarios)
    with tqdm(total=total, unit="step", desc=f"sampling, {plan.name} grids") as bar:
        for grid, seed in rounds:
            if done and clock.left(plan.share) < longest:
                break
            start, found = clock.used, {}
            twins: dict[int, Run] = {}
            for scenario in plan.scenarios:
                row, target, steps, warmup = scenario
                setting = Setting(grid, steps, warmup, plan.cfg)
                if scenario in impossible:
                    bar.update(steps)
                    continue
                if done == 0 and clock.left(plan.share) < 0:
                    impossible[scenario] = "out of time"
                    continue
                if steps not in twins:
                    twins[steps] = run_dense(model, setting, seed, steps)
                if row == DENSE_FEWER:
                    run = run_dense(model, setting, seed, steps_at_equal_compute(setting, target, share))
                    bar.update(steps)
                else:
                    try:
                        run = run_sparse(model, rows[row], target, setting, seed, cache, bar.update)
                    except ValueError as error:
                        impossible[scenario] = str(error)
                        continue
                found[scenario] = compare(run, twins[steps])
            for scenario, scores in found.items():
                cells[scenario].scores[(str(grid), seed)] = scores
            done, longest = done + 1, max(longest, clock.used - start)
    left_out = [
        f"{plan.name} grids, {row} at {target:.0%}, {steps} steps, warm-up {warmup:.0%}: {reason}"
        for (row, target, steps, warmup), reason in impossible.items()
    ]
    if done < len(rounds):
        left_out.append(
            f"{plan.name} grids: out of time after {done} of {len(rounds)} rounds; left out (grid, seed): "
            + ", ".join(f"({grid}, {seed})" for grid, seed in rounds[done:])
        )
    # A scenario some round could not run is left out of the table altogether: all rows stand on the same rounds.
    return [cell for scenario, cell in cells.items() if cell.scores and scenario not in impossible], left_out
