"""A diffusers pipeline in a local folder as a source: Wan (both experts of 2.2), HunyuanVideo, HunyuanVideo 1.5."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.profile import MAIN
from draftattention.draftattn_core.run.settings import Settings
from tools.calibrate.jobs import Job, Recorded
from tools.calibrate.source import steps_needed

EXPERTS = ("high", "low")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class VideoSize:
    """Size of the videos; None takes the pipeline's default."""

    width: int | None = None
    height: int | None = None
    frames: int | None = None

    def arguments(self) -> dict[str, int]:
        given = {"width": self.width, "height": self.height, "num_frames": self.frames}
        return {name: value for name, value in given.items() if value is not None}


def load_pipeline(folder: Path, *, device: str, dtype: str, offload: bool) -> Any:
    """The pipeline saved in `folder`. Nothing is fetched, no code of the folder runs, weights are safetensors.

    Raises:
        OSError, ValueError: as diffusers does, if the folder holds no pipeline it can load so.
    """
    from diffusers import DiffusionPipeline

    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds no model_index.json: give a folder that a diffusers pipeline was saved to")
    pipe = DiffusionPipeline.from_pretrained(
        folder, torch_dtype=DTYPES[dtype], local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


class Pipeline:
    """See `Source`.

    Args:
        pipe: a loaded text-to-video pipeline.
        name: of the model, for the journal.
        guidance: None takes the pipeline's default.
    """

    def __init__(
        self, pipe: Any, name: str, *, steps: int, size: VideoSize = VideoSize(), guidance: float | None = None
    ) -> None:
        self.steps, self._pipe, self._name, self._size, self._guidance = steps, pipe, name, size, guidance
        pipe.set_progress_bar_config(disable=True)

    @property
    def conditions(self) -> dict[str, object]:
        return {
            "model": self._name, "steps": self.steps, "guidance": self._guidance, **self._size.arguments(),
        }  # fmt: skip

    def check(self, prompt: str) -> None:
        """A pipeline takes any prompt."""

    def record(self, job: Job, settings: Settings, whole: bool, on_step: Callable[[], object]) -> Recorded:
        pipe = self._pipe
        last = self.steps if whole else steps_needed(self.steps)

        def after(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            on_step()
            if step + 1 >= last:
                # How a pipeline is asked to end early; those that know no interruption go on.
                pipeline._interrupt = True
            return given

        arguments: dict[str, Any] = {"output_type": "latent", "callback_on_step_end": after, **self._size.arguments()}
        if self._guidance is not None:
            arguments["guidance_scale"] = self._guidance
        generator = torch.Generator().manual_seed(job.seed)
        with ExitStack() as stack:
            handles = [
                stack.enter_context(apply_draft_attention(model, settings, scheduler=pipe.scheduler, expert=expert))
                for expert, model in self._experts().items()
            ]
            pipe(prompt=job.prompt, num_inference_steps=self.steps, generator=generator, **arguments)
            runs = [handle.run for handle in handles]
        profiles = [found for run in runs if (found := run.profile(job.prompt)) is not None]
        votes = [masks for run in runs if (masks := run.calibration(job.prompt)) is not None]
        return Recorded(
            reduce(lambda a, b: a.merged(b, same_run=True), profiles) if profiles else None,
            # Both experts saw one run.
            replace(reduce(lambda a, b: a.merged(b), votes), runs=1) if votes else None,
        )

    def _experts(self) -> dict[str, Any]:
        second = getattr(self._pipe, "transformer_2", None)
        if second is None:
            return {MAIN: self._pipe.transformer}
        return dict(zip(EXPERTS, (self._pipe.transformer, second), strict=True))
