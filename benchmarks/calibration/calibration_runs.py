"""Runs that profiles and masks are made from: dense runs of other seeds, prompts, step counts, grids and samplers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.calibration.evaluation import LayerCall
from benchmarks.calibration.plan import CalibrationRun
from benchmarks.calibration.published import Energies, energies_of
from benchmarks.frontier.samplers import sample, scheduler_of
from benchmarks.quality.capture import CapturedCall, attention_replaced, dense_attention
from demo.flow import predict_velocity
from demo.sample import initial_noise
from draftattention.draftattn_core import Settings, TableCache
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.figures import BUCKETS, bucket_of
from draftattention.draftattn_core.run.profile import Profile
from draftattention.draftattn_core.run.profile_file import load_profile, save_profile
from draftattention.draftattn_core.run.schedule import constant
from draftattention.nodes.demo_prompts import prompt_embedding


class _Enough(Exception):
    pass


def follow(
    model: WanTransformer3DModel, run: CalibrationRun, after: Callable[[int], bool], settings: Settings | None = None
) -> Profile | None:
    """Follow a run, dense or under `settings`, until `after(step)` says that it is enough.

    Returns:
        What was recorded of it, if the settings record.
    """
    levels = [float(level) for level in scheduler_of(run.solver, run.steps).sigmas[: run.steps]]
    noise, text = initial_noise(run.grid.as_tuple(), run.seed), prompt_embedding(run.prompt)
    done = [0]

    def velocity(x: Tensor, level: float) -> Tensor:
        found = predict_velocity(model, x, torch.tensor([level]), text).float()
        step, done[0] = done[0], done[0] + 1
        if after(step):
            raise _Enough
        return found

    if settings is None:
        with suppress(_Enough):
            sample(velocity, noise, run.solver, run.steps)
        return None
    with apply_draft_attention(model, settings, timesteps=[1000 * level for level in levels]) as handle:
        with suppress(_Enough):
            sample(velocity, noise, run.solver, run.steps)
        return handle.run.profile(run.prompt)


def record(model: WanTransformer3DModel, run: CalibrationRun) -> Profile:
    """The profile that Calibrate would make of this run alone. It ends once every bucket was seen."""
    settings = Settings(schedule=constant(1.0), record=True)
    found = follow(model, run, lambda step: bucket_of(step / run.steps) == BUCKETS - 1, settings)
    if found is None:
        raise RuntimeError(f"the run {run.key} left no profile")
    return found


@dataclass(frozen=True)
class Kept:
    """What calibration runs left, kept on disk: it is made once.

    Attributes:
        folder: where.
        model: identity of the weights.
    """

    folder: Path
    model: str

    def profile(self, model: WanTransformer3DModel, run: CalibrationRun) -> Profile:
        path = self._path(run, "profile")
        if not path.is_file():
            save_profile(record(model, run), path)
        return load_profile(path)

    def energies(
        self, model: WanTransformer3DModel, run: CalibrationRun, at_steps: tuple[int, ...], cache: TableCache
    ) -> Energies:
        """Block energies of the steps asked for, as CalibAtt's calibration pass takes them."""
        path = self._path(run, f"energies {at_steps}")
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            found: dict[str, Tensor] = {}
            step_now = [0]

            def look(q: Tensor, k: Tensor, v: Tensor, layer: int, step: int) -> Tensor:
                step_now[0] = step
                if step in at_steps:
                    call = CapturedCall(q, k, v, run.grid, run.seed, step, layer)
                    for name, value in energies_of(LayerCall(call, Settings(), cache)).items():
                        found[f"{step} {layer} {name}"] = value.half().contiguous()
                return dense_attention(q, k, v, layer, step)

            with attention_replaced(model, look):
                follow(model, run, lambda step: step >= max(at_steps))
            save_file(found, path)
        return by_place(path)

    def _path(self, run: CalibrationRun, what: str) -> Path:
        words = json.dumps([self.model, run.key, run.prompt, what])
        return self.folder / f"{run.key}-{hashlib.sha256(words.encode()).hexdigest()[:12]}.safetensors"


def merged(profiles: list[Profile]) -> Profile:
    """One profile of several runs."""
    whole = profiles[0]
    for profile in profiles[1:]:
        whole = whole.merged(profile)
    return whole


def by_place(path: Path) -> dict[tuple[int, int], dict[str, Tensor]]:
    """Kept tensors by (step, layer) and name, from a file whose keys are these three words."""
    found: dict[tuple[int, int], dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        step, layer, name = key.split()
        found.setdefault((int(step), int(layer)), {})[name] = value
    return found
