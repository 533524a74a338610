"""Measuring: every method of a scenario in every round, each unit written down as soon as it is done."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from tqdm import tqdm

from benchmarks.frontier.methods import Method
from benchmarks.frontier.plan import CONVERGED_STEPS, Scenario
from benchmarks.frontier.runs import run
from benchmarks.frontier.tried import Tried
from benchmarks.frontier.tried_runs import run_tried
from benchmarks.quality.capture import prompt_of
from benchmarks.quality.plan import Clock
from benchmarks.quality.raw import Raw, Record, Shard, significant
from draftattention.draftattn_core import TokenGrid
from draftattention.draftattn_core.views.metrics import flicker, psnr, ssim

# What PSNR says of equal clips, so that means stay finite.
EQUAL_DB = 100.0


class References:
    """The clips that others are compared with, kept on disk: the converged path alone takes ten dense runs.

    Args:
        folder: where they are kept.
        model: identity of the weights.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model

    def get(self, grid: TokenGrid, seed: int, dense: Method, make: Callable[[Method], Tensor]) -> Tensor:
        """Frames uint8 (T, H, W, 3) of a dense run."""
        path = self._path(grid, seed, dense)
        if path.is_file():
            kept: Tensor = torch.load(path, weights_only=True)
            return kept
        frames = make(dense)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{time.time_ns()}")
        torch.save(frames, partial)
        partial.replace(path)
        return frames

    def at_hand(self, grid: TokenGrid, seed: int, dense: Method) -> bool:
        return self._path(grid, seed, dense).is_file()

    def _path(self, grid: TokenGrid, seed: int, dense: Method) -> Path:
        sampler = "" if dense.solver == "euler" else f" {dense.solver}"
        words = f"{self.model} {grid} {seed} {prompt_of(seed)} {dense.steps}{sampler}"
        return self.folder / f"{hashlib.sha256(words.encode()).hexdigest()[:20]}.pt"


def unit(scenario: Scenario, grid: TokenGrid, seed: int, method: Method) -> list[object]:
    """What a unit's figures depend on, beside the weights."""
    does = asdict(method) | {"family": ""}
    # Lines written before these settings existed stay valid.
    for later in ("max_skips", "share", "core"):
        if does[later] is None:
            del does[later]
    return [scenario.model, scenario.steps, str(grid), seed, prompt_of(seed), does]


def measure(
    model: WanTransformer3DModel,
    scenario: Scenario,
    raw: Raw,
    references: References,
    clock: Clock,
    *,
    shard: Shard,
    converged: bool,
) -> bool:
    """Every unit of a scenario that `raw` lacks, as long as the clock has time.

    Args:
        converged: make the clips of the converged path, too; those at hand are compared with anyway.

    Returns:
        Whether all of this shard is done.
    """
    wanted = scenario.methods
    rounds = shard.pick(scenario.rounds)
    with tqdm(total=len(rounds) * len(wanted), unit="run", desc=scenario.name) as bar:
        for grid, seed in rounds:
            known = [record["unit"] for record in raw.records()]
            missing = [method for method in wanted if unit(scenario, grid, seed, method) not in known]
            bar.update(len(wanted) - len(missing))
            if not missing:
                continue
            if clock.left() < 0:
                return False
            exact = Method("", steps=CONVERGED_STEPS)

            def dense(method: Method) -> Tensor:
                return references.get(grid, seed, method, lambda what: run(model, what, grid, seed).frames)  # noqa: B023

            path = dense(exact) if converged or references.at_hand(grid, seed, exact) else None
            for method in missing:
                if clock.left() < 0:
                    return False
                twin = dense(Method("", solver=method.solver, steps=scenario.steps))
                since = time.monotonic()
                if isinstance(method, Tried):
                    made = run_tried(model, method, grid, seed)
                else:
                    made = run(model, method, grid, seed)
                raw.append(
                    {
                        "unit": unit(scenario, grid, seed, method),
                        "family": method.family,
                        "name": method.name,
                        "ledger": asdict(made.ledger),
                        "scores": scores(made.frames, twin),
                        "converged": None if path is None else scores(made.frames, path)["psnr_db"],
                        "took": round(time.monotonic() - since, 2),
                    }
                )
                bar.update()
    return True


def scores(frames: Tensor, reference: Tensor) -> dict[str, float]:
    """PSNR (dB, at most `EQUAL_DB`), SSIM and flicker of a clip beside its reference."""
    mine, other = frames.float() / 255, reference.float() / 255
    ratio = psnr(mine, other)
    return {
        "psnr_db": significant(EQUAL_DB if math.isinf(ratio) else min(ratio, EQUAL_DB)),
        "ssim": significant(ssim(mine, other)),
        "flicker": significant(flicker(mine, other)),
    }


def whole_rounds(scenario: Scenario, records: list[Record]) -> dict[tuple[str, int], list[Record]]:
    """Records by round, of those rounds only in which every method was measured: all rows stand on the same."""
    by_unit = {str(record["unit"]): record for record in records}
    found: dict[tuple[str, int], list[Record]] = {}
    for grid, seed in scenario.rounds:
        here = [by_unit.get(str(unit(scenario, grid, seed, method))) for method in scenario.methods]
        if all(record is not None for record in here):
            # Lines name the family that they were written under; the plan of today is what counts.
            found[str(grid), seed] = [
                {**record, "family": method.family}
                for method, record in zip(scenario.methods, here, strict=True)
                if record is not None
            ]
    return found
