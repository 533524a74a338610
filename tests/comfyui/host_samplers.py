"""Runs in ComfyUI's Python: python host_samplers.py COMFYUI OUT.json STEPS[,STEPS...]

Writes {sampler: {steps: {"levels", "latent"}}} of the host's own samplers on the toy flow, on Wan's noise levels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SHIFT = 5.0


def main() -> None:
    comfyui, out, steps = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent))
    import host

    host.start(comfyui)
    import comfy.samplers
    from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow
    from toy_flow import denoised, start

    class Levels(ModelSamplingDiscreteFlow, CONST):
        pass

    sampling = Levels()
    sampling.set_parameters(shift=SHIFT)

    class Model:
        def get_model_object(self, name: str) -> Any:
            return sampling

    def model(x: Any, level: Any, **_: Any) -> Any:
        return denoised(x, float(level[0]))

    made: dict[str, dict[int, Any]] = {}
    for name in ("euler", "dpmpp_2m", "uni_pc"):
        for count in map(int, steps.split(",")):
            levels = comfy.samplers.KSampler(Model(), count, "cpu", sampler=name, scheduler="simple").sigmas
            latent = comfy.samplers.sampler_object(name).sampler_function(
                model, start(count) * levels[0], levels.clone(), extra_args={}, disable=True
            )
            made.setdefault(name, {})[count] = {"levels": levels.tolist(), "latent": latent.flatten().tolist()}
    Path(out).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
