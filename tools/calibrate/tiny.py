"""The tiny model of the demo as a source: its prompts are the classes it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from demo import checkpoint
from demo.sample import sample, sigmas
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.settings import Settings
from draftattention.nodes.demo_prompts import PROMPTS
from tools.calibrate.jobs import Job, Recorded
from tools.calibrate.source import steps_needed

SHIFT = 5.0
GRID = (9, 24, 40)


class _Enough(Exception):
    pass


class TinyModel:
    """See `Source`.

    Args:
        path: its weights.
        grid: tokens of the video, frames x height x width.
        guidance: 1 for none.
    """

    def __init__(
        self,
        path: Path = checkpoint.CHECKPOINT,
        *,
        grid: tuple[int, int, int] = GRID,
        steps: int = 20,
        guidance: float = 1.0,
        device: str = "cpu",
    ) -> None:
        self.steps, self._grid, self._guidance = steps, grid, guidance
        self._model = checkpoint.load(path, device=device)

    @property
    def conditions(self) -> dict[str, object]:
        return {"model": "tiny", "grid": self._grid, "steps": self.steps, "guidance": self._guidance}

    def check(self, prompt: str) -> None:
        if prompt not in PROMPTS:
            raise ValueError(f"the tiny model knows the prompts {', '.join(PROMPTS)}, not {prompt[:40]!r}")

    def record(self, job: Job, settings: Settings, whole: bool, on_step: Callable[[], object]) -> Recorded:
        last = self.steps if whole else steps_needed(self.steps)

        def after(step: int, *_: object) -> None:
            on_step()
            if step + 1 >= last:
                raise _Enough

        timesteps = (1000 * sigmas(self.steps, SHIFT)[:-1]).tolist()
        with apply_draft_attention(self._model, settings, timesteps=timesteps) as handle, suppress(_Enough):
            sample(
                self._model,
                job.prompt,
                self._grid,
                steps=self.steps,
                seed=job.seed,
                shift=SHIFT,
                cfg=self._guidance,
                callback=after,
            )
        return Recorded(handle.run.profile(job.prompt), handle.run.calibration(job.prompt))
