"""Part A: judged evaluations of dense runs, cell by cell, into the raw file."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from diffusers import WanTransformer3DModel
from tqdm import tqdm

from benchmarks.calibration.calibration_runs import Kept
from benchmarks.calibration.evaluation import Evaluation, LayerCall, Score
from benchmarks.calibration.methods import Cell, Cells
from benchmarks.calibration.plan import Captured
from benchmarks.quality.capture import CapturedCall, capture, prompt_of
from benchmarks.quality.plan import Clock
from benchmarks.quality.raw import Raw, Record, Shard
from draftattention.draftattn_core import Settings, TableCache

Unit = list[object]


def unit(scenario: Captured, seed: int, step: int) -> Unit:
    """What a line's figures depend on, beside its cells and the weights."""
    return [
        "captured",
        str(scenario.grid),
        scenario.steps,
        [list(p) for p in scenario.pairs],
        seed,
        prompt_of(seed),
        step,
    ]


def known_cells(records: Sequence[Record]) -> dict[str, dict[str, list[Score]]]:
    """By unit, what is measured: scores by the key of their cell."""
    found: dict[str, dict[str, list[Score]]] = {}
    for record in records:
        if record["unit"][0] == "captured":
            found.setdefault(str(record["unit"]), {}).update(record["cells"])
    return found


def measure_captured(
    model: WanTransformer3DModel, scenario: Captured, raw: Raw, kept: Kept, clock: Clock, shard: Shard
) -> bool:
    """Judge what `raw` lacks while the clock has time. Returns whether all of this shard is done."""
    cache = TableCache(64)
    cells = Cells(model, scenario, kept, cache)
    judged = [step for _, step in scenario.pairs]
    rounds = shard.pick([(scenario.grid, seed) for seed in scenario.seeds])
    total = len(rounds) * len(judged)
    with tqdm(total=total, unit="evaluation", desc=scenario.name) as bar, torch.inference_mode():
        for grid, seed in rounds:
            known = known_cells(raw.records())
            missing = {
                step: [
                    cell for cell in cells.of(seed) if cell.key not in known.get(str(unit(scenario, seed, step)), ())
                ]
                for step in judged
            }
            bar.update(sum(not some for some in missing.values()))
            wanted = [pair for pair in scenario.pairs if missing[pair[1]]]
            if not wanted:
                continue
            if clock.left() < 0:
                return False
            cells.prepare([cell for some in missing.values() for cell in some])
            calls: dict[int, list[CapturedCall]] = {}
            layers = len(model.blocks)

            def on_call(call: CapturedCall) -> None:
                calls.setdefault(call.step, []).append(call)  # noqa: B023
                if call.step not in missing or len(calls[call.step]) < layers:  # noqa: B023
                    return
                first = next(first for first, second in wanted if second == call.step)  # noqa: B023
                pair = (_evaluation(calls.pop(step), scenario, cache) for step in (call.step, first))  # noqa: B023
                _judge(scenario, call.seed, missing[call.step], *pair, raw, clock)  # noqa: B023
                bar.update()

            capture(
                model,
                prompt_of(seed),
                grid,
                seed=seed,
                steps=scenario.steps,
                at_steps=[step for pair in wanted for step in pair],
                layers=range(layers),
                on_call=on_call,
            )
    return clock.left() >= 0


def _evaluation(calls: list[CapturedCall], scenario: Captured, cache: TableCache) -> Evaluation:
    ordered = sorted(calls, key=lambda call: call.layer)
    return Evaluation(tuple(LayerCall(call, Settings(), cache) for call in ordered), ordered[0].step / scenario.steps)


def _judge(
    scenario: Captured,
    seed: int,
    cells: list[Cell],
    evaluation: Evaluation,
    before: Evaluation,
    raw: Raw,
    clock: Clock,
) -> None:
    """Score one evaluation; what the clock has no time for is left for the next sitting."""
    since = time.monotonic()
    found: dict[str, list[Score]] = {}
    for cell in cells:
        if clock.left() < 0:
            break
        found[cell.key] = cell.score(evaluation, before)
    if found:
        step = evaluation.layers[0].call.step
        raw.append({"unit": unit(scenario, seed, step), "cells": found, "took": round(time.monotonic() - since, 2)})
