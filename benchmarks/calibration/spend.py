"""Budgets as a run solves them, from figures of any source, and what they lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from benchmarks.calibration.evaluation import Evaluation, Score
from benchmarks.quality.work import tail_shares
from draftattention.draftattn_core import Settings, TableCache, TokenGrid
from draftattention.draftattn_core.geometry.layout import LayoutTables
from draftattention.draftattn_core.method.policy import TAILS, Policy, TailName
from draftattention.draftattn_core.run.budgets import CurveTable, least_error
from draftattention.draftattn_core.run.convex_curve import Array
from draftattention.draftattn_core.run.figures import CompleteFigures, bucket_of
from draftattention.draftattn_core.run.fingerprint import Fingerprint
from draftattention.draftattn_core.run.probe import HeadTails
from draftattention.draftattn_core.run.profile import MAIN
from draftattention.draftattn_core.run.profile_recorder import ProfileRecorder

HEAD_SIZE = 64


def figures_of(evaluation: Evaluation, rows: int) -> CompleteFigures:
    """What a probe of `rows` rows finds in one evaluation."""
    first = evaluation.layers[0]
    heads, size = first.call.q.shape[1], first.call.q.shape[3]
    recorder = ProfileRecorder.of_run(first.settings, Fingerprint("wan", len(evaluation.layers), heads, size))
    for layer in evaluation.layers:
        recorder.add(layer.curves(rows), expert=MAIN, weights="", progress=evaluation.progress, layer=layer.call.layer)
    found = recorder.complete(MAIN)
    assert found is not None
    return found


def score_budgets(
    figures: CompleteFigures, evaluation: Evaluation, work: float, sensitivity: Sequence[float] | None = None
) -> list[Score]:
    """Each head at the density that the figures give it, at a mean `work` of the evaluation; see `Spending`.

    Args:
        sensitivity: factor on the squared errors of each layer.
    """
    first = evaluation.layers[0]
    bucket = bucket_of(evaluation.progress)
    policies = solved(figures, first.settings, first.call.grid, bucket, work, first.cache, sensitivity)
    return [
        layer.dense() if policy is None else layer.score_policy(policy)
        for layer, policy in zip(evaluation.layers, policies, strict=True)
    ]


def solved(
    figures: CompleteFigures,
    settings: Settings,
    grid: TokenGrid,
    bucket: int,
    work: float,
    cache: TableCache,
    sensitivity: Sequence[float] | None = None,
) -> list[Policy | None]:
    """What every layer is asked to do at a mean `work` of an evaluation, None for dense; see `Spending`.

    Args:
        sensitivity: factor on the squared errors of each layer.
    """
    works = tail_works(cache.get(settings.layout(grid), torch.device("cpu")), HEAD_SIZE)
    whole = figures.table(works)
    table = CurveTable(whole.densities, *(x[[bucket]] for x in (whole.squared, whole.norms, whole.tail_work)))
    weights = None if sensitivity is None else np.asarray(sensitivity, dtype=np.float64)
    budgets = least_error(table, work, sensitivity=weights)
    given = [budgets.heads(0, layer) for layer in range(table.norms.shape[1])]
    return [
        None if one is None else policy_at(figures, settings, bucket, layer, one) for layer, one in enumerate(given)
    ]


def score_uniform(figures: CompleteFigures, evaluation: Evaluation, work: float) -> list[Score]:
    """Every head at one density, with the gains that the figures have for it."""
    first = evaluation.layers[0]
    density = work - tail_works(first.tables, first.call.q.shape[-1])[figures.tails[0]]
    if density <= 0.0:
        return []
    bucket, each = bucket_of(evaluation.progress), (density,) * first.call.q.shape[1]
    return evaluation.scored(
        lambda layer: layer.score_policy(policy_at(figures, layer.settings, bucket, layer.call.layer, each))
    )


def score_given(figures: CompleteFigures, evaluation: Evaluation, density: Array) -> list[Score]:
    """Heads at given densities (layers, heads), with the gains that the figures have for them."""
    bucket, found = bucket_of(evaluation.progress), []
    for layer, each in zip(evaluation.layers, density.tolist(), strict=True):
        policy = policy_at(figures, layer.settings, bucket, layer.call.layer, tuple(each))
        found.append(layer.dense() if min(each) >= 1.0 else layer.score_policy(policy))
    return found


def policy_at(
    figures: CompleteFigures, settings: Settings, bucket: int, layer: int, densities: tuple[float, ...]
) -> Policy:
    """Heads of a layer at given densities, with the tails and gains that the figures have for them."""
    found = HeadTails(*figures.heads(bucket, layer, densities))
    return found.put_into(replace(settings.policy, density=densities))


def tail_works(tables: LayoutTables, head_size: int) -> dict[TailName, float]:
    """Work of every tail as a share of a dense call's."""
    return dict(zip(TAILS, tail_shares(TAILS, tables, head_size), strict=True))
