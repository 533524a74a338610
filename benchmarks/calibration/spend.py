"""Budgets as a run solves them, from figures of any source, and what they lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.calibration.evaluation import Evaluation, LayerCall, Score
from benchmarks.quality.work import tail_shares
from draftattention.draftattn_core import Settings
from draftattention.draftattn_core.method.policy import TAILS
from draftattention.draftattn_core.run.budgets import CurveTable, least_error
from draftattention.draftattn_core.run.error_curve import CURVE_DENSITIES
from draftattention.draftattn_core.run.figures import CompleteFigures, bucket_of
from draftattention.draftattn_core.run.fingerprint import Conditions, Fingerprint
from draftattention.draftattn_core.run.probe import HeadTails
from draftattention.draftattn_core.run.profile import MAIN
from draftattention.draftattn_core.run.profile_recorder import ProfileRecorder


def recorder_for(settings: Settings, layers: int, heads: int, head_size: int) -> ProfileRecorder:
    """A recorder of the tiny model's figures under the pack's defaults, as a run makes it."""
    tail = settings.policy.tail
    conditions = Conditions.of(
        settings.policy,
        q_block=settings.q_block,
        k_block=settings.k_block,
        tile=settings.tile,
        order=settings.order,
        tails=(tail,) if isinstance(tail, str) else tail,
        gains=settings.auto_gain,
    )
    return ProfileRecorder(Fingerprint("wan", layers, heads, head_size), conditions, CURVE_DENSITIES)


def figures_of(evaluation: Evaluation, rows: int) -> CompleteFigures:
    """What a probe of `rows` rows finds in one evaluation."""
    first = evaluation.layers[0]
    heads, size = first.call.q.shape[1], first.call.q.shape[3]
    recorder = recorder_for(first.settings, len(evaluation.layers), heads, size)
    for layer in evaluation.layers:
        recorder.add(
            layer.curves(rows), expert=MAIN, weights="", progress=evaluation.progress, layer=layer.call.layer
        )
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
    bucket = bucket_of(evaluation.progress)
    whole = figures.table(_tail_works(evaluation.layers[0]))
    table = CurveTable(whole.densities, *(x[[bucket]] for x in (whole.squared, whole.norms, whole.tail_work)))
    weights = None if sensitivity is None else np.asarray(sensitivity, dtype=np.float64)
    budgets = least_error(table, work, sensitivity=weights)
    return [
        layer.dense() if given is None else _score(figures, bucket, layer, given)
        for index, layer in enumerate(evaluation.layers)
        for given in (budgets.heads(0, index),)
    ]


def score_uniform(figures: CompleteFigures, evaluation: Evaluation, work: float) -> list[Score]:
    """Every head at one density, with the gains that the figures have for it."""
    works = _tail_works(evaluation.layers[0])
    density = work - works[figures.tails[0]]
    if density <= 0.0:
        return []
    heads = evaluation.layers[0].call.q.shape[1]
    bucket = bucket_of(evaluation.progress)
    return evaluation.scored(lambda layer: _score(figures, bucket, layer, (density,) * heads))


def _score(figures: CompleteFigures, bucket: int, layer: LayerCall, densities: tuple[float, ...]) -> Score:
    tails = HeadTails(*figures.heads(bucket, layer.call.layer, densities))
    return layer.score_policy(tails.put_into(replace(layer.settings.policy, density=densities)))


def _tail_works(layer: LayerCall) -> dict[str, float]:
    shares = tail_shares(TAILS, layer.tables, layer.call.q.shape[-1])
    return dict(zip(TAILS, shares, strict=True))
