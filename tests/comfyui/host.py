"""Inside ComfyUI's own Python: start the host without its server, import the pack as it does, build and sample models.

`start` must run before anything imports `comfy`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

PACK_ROOT = Path(os.path.abspath(__file__)).parents[2]
PACK = "draft_pack"


class Absent(Exception):
    """This ComfyUI does not have what a check is about; the message says what."""


Check = Callable[[], None]


def registry() -> tuple[dict[str, Check], Callable[[str], Callable[[Check], Check]]]:
    """The CHECKS of a module, and the decorator that enters a function there under its name."""
    checks: dict[str, Check] = {}

    def check(name: str) -> Callable[[Check], Check]:
        def keep(function: Check) -> Check:
            checks[name] = function
            return function

        return keep

    return checks, check


def start(comfyui: str) -> None:
    """Make `comfy` importable, on the CPU, and load the pack."""
    sys.path.insert(0, comfyui)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    load_pack()


def load_pack() -> ModuleType:
    """The pack imported as the host does it: from its folder, under a name of our choice."""
    spec = importlib.util.spec_from_file_location(
        PACK, PACK_ROOT / "__init__.py", submodule_search_locations=[str(PACK_ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


def pack(name: str) -> ModuleType:
    """A module of the pack, such as "nodes.host.adapter"."""
    return importlib.import_module(f"{PACK}.{name}")


def apply(model: Any, **choices: Any) -> tuple[Any, Any]:
    """The patched model and its report handle; sparse from the first step on small videos unless told otherwise."""
    given = {"preset": "custom", "dense_start": 0.0, "min_tokens": 0, "tail": "linear1", **choices}
    given.setdefault("blocks", (16, 8))
    return pack("nodes.host.adapter").apply_draft_attention(model, pack("nodes.inputs.presets").Choices(**given))


def build(config: str, unet: dict[str, Any], seed: int = 0) -> Any:
    """ComfyUI's own model, with small random weights, in its ModelPatcher.

    Args:
        config: class in comfy.supported_models; it picks the host's BaseModel and its sampling.
        unet: keyword arguments of the diffusion model.
    """
    import comfy.model_patcher
    import comfy.supported_models

    if not hasattr(comfy.supported_models, config):
        raise Absent(f"this ComfyUI has no {config}")
    made = getattr(comfy.supported_models, config)(unet)
    made.set_inference_dtype(torch.float32, None)
    made.custom_operations = None
    model = made.get_model({}, "", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.diffusion_model.named_parameters():
            if value.dim() >= 2:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.15)
            else:
                value.fill_(0.0 if name.endswith("bias") else 1.0)
        for name, value in model.diffusion_model.named_buffers():
            if name.endswith("rope.inv_freq"):  # part of MiniMax-H3's checkpoint
                value.copy_(10000.0 ** -torch.linspace(0.0, 1.0, len(value)))
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def noise_like(latent: torch.Tensor, seed: int = 7) -> torch.Tensor:
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


def sample(
    model: Any,
    latent: torch.Tensor,
    positive: Any,
    negative: Any | None = None,
    *,
    steps: int = 2,
    cfg: float = 1.0,
    sampler: str = "euler",
    noise: torch.Tensor | None = None,
    **more: Any,
) -> torch.Tensor:
    """ComfyUI's own sampling; a sampler that KSampler does not offer goes through the custom sampling."""
    import comfy.sample
    import comfy.samplers
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    noise = noise_like(latent) if noise is None else noise
    negative = positive if negative is None else negative
    with torch.inference_mode():  # as the host's own execution
        if sampler not in comfy.samplers.KSampler.SAMPLERS:
            sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
            chosen = comfy.samplers.ksampler(sampler)
            return comfy.sample.sample_custom(
                model, noise, cfg, chosen, sigmas, positive, negative, latent, seed=7, disable_pbar=True, **more
            )
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, "simple", positive, negative, latent, seed=7, disable_pbar=True, **more
        )
