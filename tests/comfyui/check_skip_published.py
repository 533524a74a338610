"""Runs in ComfyUI's Python: EasyCache on the host's own runs, held to the published rule step by step."""

from __future__ import annotations

from typing import Any

import host
import torch
from model_cases import CASES
from plain_easycache import Step, answers_off, decisions
from skipped_runs import lora, skipping
from toy_runs import LATENT, TEXT, calm, node, wan

CHECKS, check = host.registry()
STEPS, FIRST = 20, 3


class Recorder:
    """What goes into APPLY_MODEL and comes out of it: outside of ours everything, inside of it what the model is asked.

    Attributes:
        steps: of each condition, by the host's number for it, its name, its context window and the shape of its latent.
    """

    def __init__(self) -> None:
        self.steps: dict[tuple[Any, ...], list[Step]] = {}
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
        kinds, window = list(options["cond_or_uncond"]), options.get("context_window")
        place = None if window is None else tuple(window.index_list), tuple(x.shape[1:])
        # The host gives back what it takes the video to be: x - sigma v.
        velocity = (x - denoised) / float(options["sigmas"][0])
        parts = zip(kinds, options["uuids"], x.chunk(len(kinds)), velocity.chunk(len(kinds)), strict=True)
        for kind, name, latent, v in parts:
            seen = self.steps.setdefault((kind, name, *place), [])
            seen.append(Step(latent.clone(), v.clone(), self.asked > before))
        return denoised


def replayed(
    model: Any, latent: torch.Tensor = LATENT, positive: Any = TEXT, *, tau: float = 0.3, end: int = 1, **more: Any
) -> list[list[Step]]:
    """Hold a run by easycache to the published rule: the decisions of every context window to the condition's, and the
    answers to every condition to its own last output and latent. Returns what was recorded, of each by itself.

    Args:
        end: evaluations that the sampler's last step makes. more: for the host's sampling.
    """
    (shifted,) = node("nodes_model_advanced", "ModelSamplingSD3")().patch(model, 5.0)
    recorder = Recorder()
    patched, handle = recorder.around(shifted, rule="easycache", threshold=tau, first=FIRST, max_skips=None)
    host.sample(patched, latent, positive, **{"steps": STEPS, **more})
    made, windows = handle.report.decisions, {key[2] for key in recorder.steps}
    for window in windows:
        deciding = next(steps for (kind, _, place, _), steps in recorder.steps.items() if (kind, place) == (0, window))
        own = [one for one in made if (None if one.window is None else one.window[2:]) == window]
        ours = "".join("C" if str(one.outcome) == "computed" else "r" for one in own)
        said, nearest = decisions(deciding, tau, FIRST, end)
        assert ours == said, (more, window, ours, said)
        assert "r" in ours and "C" in ours[FIRST : len(ours) - end], f"a run that tells nothing of the rule: {ours}"
        assert nearest > 1e-3, f"a decision within {nearest} of the threshold may fall either way by rounding"
    assert all(answers_off(steps) < 1e-4 for steps in recorder.steps.values())
    return list(recorder.steps.values())


@check("Skip Steps by easycache decides as the published rule does on what the host recorded, from text and from image")
def _() -> None:
    image = next(case for case in CASES if case.name == "Wan i2v")
    guided = {"negative": [[0.3 * torch.ones(1, 5, 64), {}]], "cfg": 3.0}
    assert [len(steps) for steps in replayed(calm(wan()))] == [STEPS]
    assert [len(steps) for steps in replayed(calm(wan()), **guided)] == [STEPS, STEPS]
    replayed(calm(host.build(image.config, image.unet)), torch.zeros(1, *image.latent), image.conditioning())


@check("Skip Steps by easycache decides as the published rule does under samplers, in windows, areas, hooks and halves")
def _() -> None:
    import comfy.hooks

    other = {"negative": [[0.3 * torch.ones(1, 5, 64), {}]], "cfg": 3.0}
    # The last step's one evaluation, and that of the step before at its noise level, which count as one step.
    (steps,) = replayed(calm(wan()), sampler="heun", end=2)
    assert len(steps) == 2 * STEPS - 1
    for sampler in ("dpm_2", "uni_pc", "dpmpp_2m"):
        replayed(calm(wan()), sampler=sampler)
    for part in (
        # Another sampler goes on: the last step of the half is not that of the run.
        {"start_step": 0, "last_step": STEPS, "steps": 2 * STEPS, "end": 0},
        {"start_step": STEPS, "last_step": 10000, "steps": 2 * STEPS},
        {"latent": 0.5 * host.noise_like(LATENT, seed=3), "denoise": 0.6},
    ):
        assert [len(steps) for steps in replayed(calm(wan()), tau=0.25, **part)] == [STEPS]
    halves = [[TEXT[0][0], {"area": (6, 5, 0, 0)}], [0.3 * TEXT[0][0], {"area": (6, 5, 0, 5)}]]
    # Either half, what the host sets against each, and the negative over the whole.
    assert len(replayed(calm(wan()), positive=halves, **other)) == 5
    hook = comfy.hooks.create_hook_lora(lora(2), 0.2, 0.0)
    assert len(replayed(calm(wan()), positive=comfy.hooks.set_hooks_for_conditioning(TEXT, hook), **other)) == 2
    windows = node("nodes_context_windows", "WanContextWindowsManualNode")
    windowed = windows.execute(calm(wan()), 21, 8, "standard_static", 1, False, "pyramid", False).args[0]
    # The last two windows are of one shape.
    assert len(replayed(windowed, torch.zeros(1, 16, 12, 6, 10))) == 3


@check("Skip Steps by easycache decides for two videos at once as the published rule does, by their mean")
def _() -> None:
    two, tau = LATENT.repeat(2, 1, 1, 1, 1), 0.3
    # Of unequal size, so that the mean of both is neither's.
    noise = host.noise_like(two) * torch.tensor([1.0, 0.2]).reshape(2, 1, 1, 1, 1)
    (steps,) = replayed(calm(wan()), two, tau=tau, noise=noise)
    assert len(steps) == STEPS and all(step.x.shape == two.shape for step in steps)
    alone = [[Step(s.x[i : i + 1], s.v[i : i + 1], s.computed) for s in steps] for i in (0, 1)]
    assert decisions(steps, tau, FIRST)[0] not in {decisions(one, tau, FIRST)[0] for one in alone}
