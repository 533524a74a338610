"""One sampling run of a method of `tried`: what settings alone do not make is put in here."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from benchmarks.frontier.core_caches import CoreStepCache
from benchmarks.frontier.runs import Made, ledger_of
from benchmarks.frontier.samplers import SHIFT, sample, scheduler_of
from benchmarks.frontier.tried import Leaning, LeaningSchedule, Tried
from benchmarks.frontier.work import Ledger
from benchmarks.quality.capture import prompt_of
from demo.flow import predict_velocity
from demo.latent import latent_to_rgb
from demo.sample import initial_noise
from draftattention.draftattn_core import Settings, TokenGrid
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.evaluation import Answer, Evaluation, StepCache
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.step_cache import RunStepCache
from draftattention.nodes.demo_prompts import prompt_embedding


class LeaningStepCache(RunStepCache):
    """A step cache that says whether the evaluation to be computed follows answered ones."""

    def __init__(self, settings: Settings, leaning: Leaning) -> None:
        super().__init__(settings.skip)
        self._leaning, self._answered = leaning, False

    def answer(self, x: Tensor, evaluation: Evaluation) -> Answer | None:
        answer = super().answer(x, evaluation)
        self._leaning.now, self._answered = self._answered, answer is not None
        return answer


def run_tried(model: WanTransformer3DModel, method: Tried, grid: TokenGrid, seed: int) -> Made:
    """Sample one video.

    Raises:
        RuntimeError: as `runs.run` does.
    """
    noise, text = initial_noise(grid.as_tuple(), seed), prompt_embedding(prompt_of(seed))
    levels = [float(level) for level in scheduler_of(method.solver, method.steps).sigmas[: method.steps]]
    settings = method.settings()
    if method.anchor_every:
        return _anchored(model, method, noise, text, levels)

    def velocity(x: Tensor, level: float) -> Tensor:
        return predict_velocity(model, x, torch.tensor([level]), text).float()

    with apply_draft_attention(model, settings, timesteps=[1000 * level for level in levels]) as handle:
        if method.core is not None or method.raised is not None:
            handle.new_step_cache = lambda: _step_cache(method, settings)
        latent = sample(velocity, noise, method.solver, method.steps)
        return Made(_frames(latent), ledger_of(handle.finish_run(), method.steps))


def _frames(latent: Tensor) -> Tensor:
    return torch.from_numpy(latent_to_rgb(latent)[0])


def _step_cache(method: Tried, settings: Settings) -> StepCache:
    if method.core is not None:
        return CoreStepCache(method.core, method.threshold, SHIFT)
    assert isinstance(settings.schedule, LeaningSchedule)
    return LeaningStepCache(settings, settings.schedule.leaning)


def anchors(method: Tried) -> tuple[set[int], set[int]]:
    """Indices of the evaluations whose dense output is made, and of those whose sparse output is."""
    first = max(method.warm, 1) - 1
    both = set(range(first, method.steps, method.anchor_every))
    return set(range(first)) | both, both | (set(range(method.steps)) - set(range(first)))


def _anchored(model: WanTransformer3DModel, method: Tried, noise: Tensor, text: Tensor, levels: list[float]) -> Made:
    dense, sparse = anchors(method)
    patched = deepcopy(model)
    settings = replace(method.settings(), schedule=constant(method.density))
    index, difference = -1, torch.zeros(())

    def velocity(x: Tensor, level: float) -> Tensor:
        nonlocal index, difference
        index += 1
        found = [
            predict_velocity(each, x, torch.tensor([level]), text).float()
            for each, wanted in ((model, dense), (patched, sparse))
            if index in wanted
        ]
        if index in dense:
            difference = found[0] - found[-1]
            return found[0]
        return found[0] + difference

    with apply_draft_attention(patched, settings, timesteps=[1000 * level for level in levels]) as handle:
        latent = sample(velocity, noise, method.solver, method.steps)
        spent = ledger_of(handle.finish_run(), len(sparse))
    return Made(_frames(latent), Ledger(spent.computed + len(dense), 0, spent.attention + len(dense)))
