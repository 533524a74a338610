"""Measuring needs, the errors that they may predict, and what budgets from needs lose, into the raw file."""

from __future__ import annotations

import time
from collections.abc import Collection

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from tqdm import tqdm

from benchmarks.calibration.evaluation import Evaluation, LayerCall
from benchmarks.calibration.methods import ONLINE, ORACLE, ORACLE_ROWS, UNIFORM
from benchmarks.calibration.needs import Array, needs_of
from benchmarks.calibration.plan import Priors
from benchmarks.calibration.priors import PRIORS, Evidence, Prior
from benchmarks.calibration.spend import (
    figures_of,
    policy_at,
    score_budgets,
    score_given,
    score_uniform,
    solved,
    tail_works,
)
from benchmarks.quality.capture import CapturedCall, capture, prompt_of
from benchmarks.quality.plan import Clock
from benchmarks.quality.raw import Raw, Record, Shard, significant
from draftattention.draftattn_core import TableCache
from draftattention.draftattn_core.run.figures import bucket_of
from draftattention.draftattn_core.run.probe import DEFAULT_ROWS

Unit = list[object]


def evidence_unit(scenario: Priors, seed: int, step: int) -> Unit:
    return ["needs", str(scenario.grid), scenario.steps, seed, prompt_of(seed), step, *_condition(scenario)]


def prior_unit(scenario: Priors, seed: int, step: int) -> Unit:
    pairs, made_from = [list(pair) for pair in scenario.pairs], [run.key for run in scenario.made_from]
    figures = [list(scenario.works), list(scenario.densities)]
    where = ["priors", str(scenario.grid), scenario.steps, pairs, seed, prompt_of(seed), step]
    return [*where, *figures, made_from, *_condition(scenario)]


def _condition(scenario: Priors) -> Unit:
    return ["no tail", list(scenario.uniform_works)] if scenario.dropped else []


def measure_priors(model: WanTransformer3DModel, scenario: Priors, raw: Raw, clock: Clock, shard: Shard) -> bool:
    """Needs and curves of the runs that the prior is made from, then the judged runs. Returns whether all is done."""
    cache, judged = TableCache(16), [step for _, step in scenario.pairs]
    seeds = [run.seed for run in scenario.made_from]
    picked = [seed for _, seed in shard.pick([(scenario.grid, seed) for seed in scenario.seeds])]
    with tqdm(total=(len(seeds) + len(picked)) * len(judged), unit="evaluation", desc=scenario.name) as bar:
        for seed in (*seeds, *picked):
            unit = evidence_unit if seed in seeds else prior_unit
            known = {str(record["unit"]) for record in raw.records()}
            missing = [pair for pair in scenario.pairs if str(unit(scenario, seed, pair[1])) not in known]
            bar.update(len(judged) - len(missing))
            if not missing:
                continue
            if clock.left() < 0:
                return False
            with torch.inference_mode():
                steps = {step for pair in missing for step in (pair[1:] if seed in seeds else pair)}
                found = _evaluations(model, scenario, seed, steps, cache)
                for before, step in missing:
                    if clock.left() < 0:
                        return False
                    since = time.monotonic()
                    if seed in seeds:
                        record = _evidence(found.pop(step))
                    else:
                        record = _judge(scenario, found.pop(step), found.pop(before), prior_of(scenario, raw.records()))
                    took = round(time.monotonic() - since, 2)
                    raw.append({"unit": unit(scenario, seed, step), **record, "took": took})
                    bar.update()
    return True


def _evaluations(
    model: WanTransformer3DModel, scenario: Priors, seed: int, steps: Collection[int], cache: TableCache
) -> dict[int, Evaluation]:
    calls: dict[int, list[CapturedCall]] = {}
    layers = range(len(model.blocks))
    for call in capture(
        model, prompt_of(seed), scenario.grid, seed=seed, steps=scenario.steps, at_steps=steps, layers=layers
    ):
        calls.setdefault(call.step, []).append(call)
    return {
        step: Evaluation(tuple(LayerCall(call, scenario.settings, cache) for call in each), step / scenario.steps)
        for step, each in calls.items()
    }


def _evidence(evaluation: Evaluation) -> Record:
    figures = figures_of(evaluation, DEFAULT_ROWS)
    bucket = bucket_of(evaluation.progress)
    return {
        "needs": _rounded(needs_of(evaluation)),
        "norms": _rounded(figures.figures.norms[bucket].double().numpy()),
        "squared": _rounded(figures.figures.squared[bucket].double().numpy()),
        "densities": list(figures.densities),
    }


def prior_of(scenario: Priors, records: list[Record]) -> Prior:
    """Made of what is measured of the runs that `scenario` names. Raises KeyError if something lacks."""
    known = {str(record["unit"]): record for record in records}
    tables: dict[int, list[Evidence]] = {}
    densities: tuple[float, ...] = ()
    for run in scenario.made_from:
        for _, step in scenario.pairs:
            record = known[str(evidence_unit(scenario, run.seed, step))]
            evidence = Evidence(*(np.array(record[name], dtype=np.float64) for name in ("needs", "norms", "squared")))
            tables.setdefault(bucket_of(step / scenario.steps), []).append(evidence)
            densities = tuple(record["densities"])
    return Prior(densities, tables)


def _judge(scenario: Priors, evaluation: Evaluation, before: Evaluation, prior: Prior) -> Record:
    """Needs, errors and the solver's densities of one evaluation, and what budgets from needs lose on it."""
    online, oracle = figures_of(before, DEFAULT_ROWS), figures_of(evaluation, ORACLE_ROWS)
    first, needs = evaluation.layers[0], needs_of(evaluation)
    tail_work = tail_works(first.tables, first.call.q.shape[-1])[online.tails[0]]
    bucket, heads = bucket_of(evaluation.progress), needs.shape[1]
    norms = torch.stack([layer.exact.square().sum(-1).mean((0, 2)) for layer in evaluation.layers])
    errors: dict[str, list[object]] = {"ours": [], "dropped": []}
    density: list[object] = []
    for asked in scenario.densities:
        each = [
            layer.head_errors(policy_at(online, layer.settings, bucket, index, (asked,) * heads))
            for index, layer in enumerate(evaluation.layers)
        ]
        for name, tables in zip(errors, zip(*each, strict=True), strict=True):
            errors[name].append(_rounded(torch.stack(tables).double().numpy()))
        policies = solved(oracle, first.settings, scenario.grid, bucket, asked, first.cache)
        density.append([[1.0] * heads if one is None else [significant(x) for x in one.of(heads).densities]
                        for one in policies])  # fmt: skip
    cells = {}
    for method in PRIORS:
        for work in scenario.works:
            given = prior.given(method, bucket, work, tail_work, needs)
            cells[f"{method} | {work:g}"] = score_given(online, evaluation, given)
    if scenario.dropped:
        for work in scenario.uniform_works:
            cells[f"{UNIFORM} | {work:g}"] = score_uniform(online, evaluation, work)
        for name, figures in ((ONLINE, online), (ORACLE, oracle)):
            cells |= {f"{name} | {work:g}": score_budgets(figures, evaluation, work) for work in scenario.works}
    return {
        "needs": _rounded(needs),
        "norms": _rounded(norms.double().numpy()),
        "errors": errors,
        "solved": density,
        "cells": cells,
    }


def _rounded(table: Array) -> list[object]:
    return [_rounded(row) if row.ndim else significant(float(row)) for row in np.asarray(table)]
