"""Runs in ComfyUI's Python: python host_samplers.py COMFYUI OUT.json STEPS[,STEPS...]

Writes {sampler: {steps: {"levels", "latent"}}} of the host's own samplers on the toy flow, on Wan's noise levels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SHIFT = 5.0
NOISY = ("euler_ancestral", "dpmpp_2m_sde")


def main() -> None:
    comfyui, out, steps = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent))
    import host

    host.start(comfyui)
    import comfy.samplers
    from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow
    from toy_flow import denoised, noise_of, start

    class Levels(ModelSamplingDiscreteFlow, CONST):
        pass

    sampling = Levels()
    sampling.set_parameters(shift=SHIFT)

    class Model:
        """What a sampler calls, and asks for the model_sampling."""

        model_sampling = sampling

        @property
        def inner_model(self) -> Any:
            return self

        @property
        def model_patcher(self) -> Any:
            return self

        def get_model_object(self, name: str) -> Any:
            return sampling

        def __call__(self, x: Any, level: Any, **_: Any) -> Any:
            return denoised(x, float(level[0]))

    model = Model()
    made: dict[str, dict[int, Any]] = {}
    for name in ("euler", "dpmpp_2m", "uni_pc", *NOISY):
        for count in map(int, steps.split(",")):
            levels = comfy.samplers.KSampler(model, count, "cpu", sampler=name, scheduler="simple").sigmas
            draw = noise_of(count)
            noise = {"noise_sampler": lambda *_, draw=draw: draw()} if name in NOISY else {}
            latent = comfy.samplers.sampler_object(name).sampler_function(
                model, start(count) * levels[0], levels.clone(), extra_args={}, disable=True, **noise
            )
            made.setdefault(name, {})[count] = {"levels": levels.tolist(), "latent": latent.flatten().tolist()}
    Path(out).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
