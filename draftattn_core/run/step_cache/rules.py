"""What the settings' rule says of one evaluation: why it is computed, or what is held against the threshold."""

from __future__ import annotations

from ..evaluation import Evaluation
from .easycache import EasyCacheState
from .forecast import ForecastState
from .latents import Parts
from .log import Reason
from .settings import Quantity, StepCacheSettings
from .stream import State, Stream


def ruled_out(
    settings: StepCacheSettings, stream: Stream, evaluation: Evaluation, index: int, step: int
) -> Reason | None:
    """Why an evaluation is computed whatever its estimate; None if it may be skipped.

    Args:
        index: of the evaluation in the run, from 0.
        step: of the sampler it belongs to, from 0 where the run begins.
    """
    if evaluation.steps is None:
        # The last evaluation must be computed, and nobody can tell which one that is.
        return Reason.LENGTH
    if stream.in_parts:
        return Reason.SAME_LEVEL
    if settings.rule == "spread":
        return _planned(settings, evaluation, evaluation.steps)
    if evaluation.is_last:
        return Reason.LAST
    whole = evaluation.before + evaluation.steps + evaluation.after
    if settings.in_first(index, evaluation.before + step, whole):
        return Reason.FIRST
    if not settings.in_window(evaluation.progress):
        return Reason.WINDOW
    if settings.max_skips is not None and stream.in_a_row >= settings.max_skips:
        return Reason.IN_A_ROW
    return None


def _planned(settings: StepCacheSettings, evaluation: Evaluation, steps: int) -> Reason | None:
    """Why `spread` computes an evaluation of a run of so many steps; None if it is to be forecast."""
    if evaluation.sampler_step in settings.planned_steps(steps):
        return Reason.PLANNED
    return None if settings.in_window(evaluation.progress) else Reason.WINDOW


def estimate(
    settings: StepCacheSettings, evaluation: Evaluation, state: State, x: Parts, level: float, reason: Reason | None
) -> tuple[float | None, Reason | None]:
    """What is held against the threshold, or why there is nothing to hold.

    Args:
        state: of the branch that decides.
        x: the latent it sees.
        reason: why the evaluation is computed anyway, if it is.
    """
    if isinstance(state, EasyCacheState):
        found = state.change(x, forced=reason is not None)
    elif reason is not None:
        return None, reason
    elif settings.rule == "spread":
        corrected = settings.correct and evaluation.next_level is not None
        return _guarded(settings, state, level, 2.0 if corrected else 1.0)
    elif state.level == level:
        return None, Reason.SAME_LEVEL
    elif state.reach(level) > settings.max_reach:
        return None, Reason.REACH
    else:
        found = state.error(level)
    return found, (reason or Reason.HISTORY) if found is None else None


def _guarded(
    settings: StepCacheSettings, state: ForecastState, level: float, times: float
) -> tuple[float | None, Reason | None]:
    """What the forecast that `spread` has planned is expected to err by, and why it is not made, if it is not.

    Args:
        times: the bound it may err by.
    """
    if state.reach(level) > settings.max_reach:
        return None, Reason.REACH
    expected = state.error(level)
    # What is no number is no small error either.
    errs = expected is not None and not expected <= times * settings.max_forecast_error
    return expected, Reason.ERRS if errs else None


def quantity_of(settings: StepCacheSettings, evaluation: Evaluation) -> Quantity:
    """What is forecast: x0 where `spread` meets a sampler that adds noise. Noise moves the latent and the velocity with
    it, but hardly what the model takes the video to be. A threshold reads too little into errors of x0, so `forecast`
    keeps its own (`benchmarks.frontier.quantities`).
    """
    return "x0" if settings.rule == "spread" and evaluation.renoised else settings.quantity
