"""Runs in ComfyUI's Python: EasyCache on the host's own runs, held to the published rule step by step."""

from __future__ import annotations

from typing import Any

import host
import torch
from model_cases import CASES
from plain_easycache import Step, answers_off, decisions
from skipped_runs import skipping
from toy_runs import LATENT, calm, node, wan

CHECKS, check = host.registry()
STEPS, FIRST = 20, 3


class Recorder:
    """What goes into APPLY_MODEL and comes out of it: outside of ours everything, inside of it what the model is asked.

    Attributes:
        steps: of each condition, by the host's number for it.
    """

    def __init__(self) -> None:
        self.steps: dict[int, list[Step]] = {}
        self.asked = 0

    def around(self, model: Any, **skip: Any) -> tuple[Any, Any]:
        """The model under Skip Steps, recorded; and the handle of its reports."""
        outer = model.clone()
        outer.add_wrapper_with_key("apply_model", "outside", self._outside)
        patched, handle = skipping(outer, **skip)
        patched = patched.clone()
        patched.add_wrapper_with_key("apply_model", "inside", self._inside)
        return patched, handle

    def _inside(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return executor(*args, **kwargs)

    def _outside(self, executor: Any, x: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.asked
        denoised = executor(x, t, *args, **kwargs)
        options = next(value for value in (*args, *kwargs.values()) if isinstance(value, dict) and "sigmas" in value)
        kinds = list(options["cond_or_uncond"])
        # The host gives back what it takes the video to be: x - sigma v.
        velocity = (x - denoised) / float(options["sigmas"][0])
        for kind, latent, v in zip(kinds, x.chunk(len(kinds)), velocity.chunk(len(kinds)), strict=True):
            self.steps.setdefault(kind, []).append(Step(latent.clone(), v.clone(), self.asked > before))
        return denoised


@check("Skip Steps by easycache decides as the published rule does on what the host recorded, from text and from image")
def _() -> None:
    image = next(case for case in CASES if case.name == "Wan i2v")
    other = [[0.3 * torch.ones(1, 5, 64), {}]]
    runs = (
        (calm(wan()), LATENT, None, 1.0, 0.3),
        (calm(wan()), LATENT, other, 3.0, 0.3),
        (calm(host.build(image.config, image.unet)), torch.zeros(1, *image.latent), None, 1.0, 0.3),
    )
    for model, latent, negative, cfg, tau in runs:
        (shifted,) = node("nodes_model_advanced", "ModelSamplingSD3")().patch(model, 5.0)
        recorder = Recorder()
        patched, handle = recorder.around(shifted, rule="easycache", threshold=tau, first=FIRST, max_skips=None)
        text = image.conditioning() if latent is not LATENT else CASES[0].conditioning()
        host.sample(patched, latent, text, negative, steps=STEPS, cfg=cfg)
        assert set(recorder.steps) == ({0} if cfg == 1.0 else {0, 1})
        said, nearest = decisions(recorder.steps[0], tau, FIRST)
        made = handle.report.decisions
        ours = "".join("C" if str(one.outcome) == "computed" else "r" for one in made)
        assert len(ours) == STEPS and ours == said, (cfg, ours, said)
        assert "r" in ours and "C" in ours[FIRST:-1], "a run that tells nothing of the rule"
        assert nearest > 1e-3, f"a decision within {nearest} of the threshold may fall either way by rounding"
        assert max(answers_off(steps) for steps in recorder.steps.values()) < 1e-4
