"""Judges portable masks: captured evaluations and whole runs, on their own grid and another, into the raw file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from benchmarks.calibration.calibration_runs import Kept, by_place
from benchmarks.calibration.evaluation import LayerCall
from benchmarks.calibration.plan import CalibrationRun, PortableMasks
from benchmarks.calibration.portable import (
    EXACT,
    KINDS,
    PORTABLE,
    UNIFORM,
    Judged,
    Masks,
    fitted,
    judge,
    masks_of,
    requested,
    with_energies,
)
from benchmarks.calibration.published import TAIL, Energies
from benchmarks.frontier.rounds import scores
from benchmarks.quality.capture import (
    AttentionFunction,
    CapturedCall,
    attention_replaced,
    capture,
    dense_attention,
    prompt_of,
)
from benchmarks.quality.plan import Clock
from benchmarks.quality.raw import Raw, Record, Shard, significant
from benchmarks.quality.work import exact_share, tail_shares
from demo.latent import latent_to_rgb
from demo.sample import sample
from draftattention.draftattn_core import Policy, Settings, TableCache, TokenGrid
from draftattention.draftattn_core.backends.call_kind import CallKind
from draftattention.draftattn_core.backends.registry import choose_backend
from draftattention.draftattn_core.run.figures import bucket_of

# (kind, whether our tail stands behind it).
WHOLE = ((EXACT, False), (PORTABLE, True), (UNIFORM, True), (PORTABLE, False))
Unit = list[object]


def _base(scenario: PortableMasks, mass: float) -> Unit:
    return [str(scenario.grid), scenario.steps, mass, [run.key for run in scenario.calibration]]


def bytes_unit(scenario: PortableMasks, mass: float) -> Unit:
    return ["portable bytes", *_base(scenario, mass)]


def captured_unit(scenario: PortableMasks, mass: float, grid: TokenGrid) -> Unit:
    seed = scenario.seeds[0]
    return ["portable captured", *_base(scenario, mass), str(grid), seed, prompt_of(seed), list(scenario.at_steps)]


def whole_unit(scenario: PortableMasks, grid: TokenGrid, seed: int, kind: str, tail: bool) -> Unit:
    return ["portable whole", *_base(scenario, scenario.masses[0]), str(grid), seed, prompt_of(seed), kind, tail]


def kinds_on(scenario: PortableMasks, grid: TokenGrid) -> tuple[str, ...]:
    """Exact masks hold on their own grid only."""
    return tuple(kind for kind in KINDS if kind != EXACT or grid == scenario.grid)


def whole_on(scenario: PortableMasks, grid: TokenGrid) -> tuple[tuple[str, bool], ...]:
    return tuple(each for each in WHOLE if each[0] in kinds_on(scenario, grid))


class _Bench:
    """What units of one sitting share."""

    def __init__(self, model: WanTransformer3DModel, scenario: PortableMasks, kept: Kept) -> None:
        self.model, self.scenario, self.kept, self.cache = model, scenario, kept, TableCache(16)
        self._masks: dict[float, Masks] = {}
        self._runs: list[Energies] = []
        self._dense: dict[tuple[TokenGrid, int], Tensor] = {}
        self._calls: dict[TokenGrid, list[CapturedCall]] = {}

    def masks(self, mass: float) -> Masks:
        """Of the calibration runs."""
        plan = self.scenario
        if not self._runs:
            self._runs = [self.energies(run) for run in plan.calibration]
        if mass not in self._masks:
            self._masks[mass] = masks_of(self._runs, plan.grid, plan.steps, mass, self.cache)
        return self._masks[mass]

    def energies(self, run: CalibrationRun) -> Energies:
        """Block energies of all steps of a run, kept on disk."""
        words = json.dumps([self.kept.model, run.key, run.prompt, "portable"])
        path = self.kept.folder / f"{run.key}-{hashlib.sha256(words.encode()).hexdigest()[:12]}.safetensors"
        if not path.is_file():
            found: dict[str, Tensor] = {}

            def look(q: Tensor, k: Tensor, v: Tensor, layer: int, step: int) -> Tensor:
                call = CapturedCall(q, k, v, run.grid, run.seed, step, layer)
                out, energies = with_energies(LayerCall(call, Settings(), self.cache))
                found.update({f"{step} {layer} {name}": value.half() for name, value in energies.items()})
                return out

            self._frames(run.grid, run.seed, look)
            self.kept.folder.mkdir(parents=True, exist_ok=True)
            save_file(found, path)
        return by_place(path)

    def bytes(self, mass: float) -> Record:
        return {"bytes": self.masks(mass).bytes()}

    def dense(self, grid: TokenGrid, seed: int) -> Tensor:
        """Frames of the dense run."""
        if (grid, seed) not in self._dense:
            self._dense[grid, seed] = self._frames(grid, seed, dense_attention)
        return self._dense[grid, seed]

    def calls(self, grid: TokenGrid) -> list[CapturedCall]:
        """Of the judged steps of the first seed, by layer."""
        if grid not in self._calls:
            plan, layers = self.scenario, range(len(self.model.blocks))
            seed, words = plan.seeds[0], prompt_of(plan.seeds[0])
            calls = capture(self.model, words, grid, seed=seed, steps=plan.steps, at_steps=plan.at_steps, layers=layers)
            self._calls[grid] = sorted(calls, key=lambda call: call.layer)
        return self._calls[grid]

    def captured(self, mass: float, grid: TokenGrid) -> Record:
        """By kind, for each judged step, its layers."""
        plan, masks = self.scenario, self.masks(mass)
        kinds = kinds_on(plan, grid)
        found: dict[str, list[list[Judged]]] = {kind: [[] for _ in plan.at_steps] for kind in kinds}
        for call in self.calls(grid):
            layer = LayerCall(call, Settings(), self.cache)
            for kind in kinds:
                row = judge(layer, *masks.keep(kind, layer, self.cache))
                found[kind][plan.at_steps.index(call.step)].append(row)
        return {"figures": found}

    def whole(self, grid: TokenGrid, seed: int, kind: str, tail: bool) -> Record:
        """A whole run beside the dense one of its seed. Gains are fitted once for each layer and bucket."""
        masks = self.masks(self.scenario.masses[0])
        gains: dict[tuple[int, int], Policy] = {}
        works: list[tuple[float, float]] = []

        def answer(q: Tensor, k: Tensor, v: Tensor, layer: int, step: int) -> Tensor:
            one = LayerCall(CapturedCall(q, k, v, grid, seed, step, layer), Settings(), self.cache)
            tables, keep = masks.keep(kind, one, self.cache)
            at = bucket_of(step / self.scenario.steps), layer
            if tail and at not in gains:
                gains[at] = fitted(one, tables, keep)
            extra = tail_shares((TAIL,), tables, q.shape[-1])[0] if tail else 0.0
            works.append((exact_share(keep, tables), extra))
            request = requested(one, tables, keep, gains.get(at))
            blocks = CallKind(q.device, q.dtype, q.shape[-1], tables.layout.q_block, tables.layout.k_block)
            return choose_backend("auto", blocks).attend(request)

        frames = self._frames(grid, seed, answer)
        exact, extra = (significant(sum(each) / len(works)) for each in zip(*works, strict=True))
        return {"scores": scores(frames, self.dense(grid, seed)), "work": exact, "tail_work": extra}

    def _frames(self, grid: TokenGrid, seed: int, answer: AttentionFunction) -> Tensor:
        with attention_replaced(self.model, answer):
            latent = sample(self.model, prompt_of(seed), grid.as_tuple(), steps=self.scenario.steps, seed=seed, cfg=1.0)
        return torch.from_numpy(latent_to_rgb(latent)[0])


def _jobs(bench: _Bench) -> Iterator[tuple[Unit, Callable[[], Record]]]:
    """Everything that is measured, in its order of worth."""
    plan = bench.scenario
    grids = (plan.grid, plan.other)
    for mass in plan.masses:
        for grid in grids:
            yield captured_unit(plan, mass, grid), partial(bench.captured, mass, grid)
        yield bytes_unit(plan, mass), partial(bench.bytes, mass)
    for seed, grid in product(plan.seeds, grids):
        for kind, tail in whole_on(plan, grid):
            yield whole_unit(plan, grid, seed, kind, tail), partial(bench.whole, grid, seed, kind, tail)


def measure_portable(
    model: WanTransformer3DModel, scenario: PortableMasks, raw: Raw, kept: Kept, clock: Clock, shard: Shard
) -> bool:
    """Every unit that `raw` lacks while the clock has time. Returns whether all of this shard is done."""
    known = {str(record["unit"]) for record in raw.records()}
    jobs = list(_jobs(_Bench(model, scenario, kept)))[shard.index :: shard.of]
    missing = [(unit, job) for unit, job in jobs if str(unit) not in known]
    with torch.inference_mode():
        for unit, job in tqdm(missing, unit="unit", desc=scenario.name):
            if clock.left() < 0:
                return False
            since = time.monotonic()
            raw.append({"unit": unit, **job(), "took": round(time.monotonic() - since, 2)})
    return True
