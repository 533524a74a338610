"""Runs in ComfyUI's Python: python tiny_checkpoints.py COMFYUI FOLDER

Writes a toy checkpoint of the right architecture under every file name the workflows use, so that the host's own
loaders, detection and samplers run them. The weights are random.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from model_cases import HUNYUAN, HUNYUAN15, WAN


def randomised(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """State dictionary with small random matrices, norms of one and no bias, in bfloat16 to keep the files small."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        if value.dim() >= 2:
            filled = torch.randn(value.shape, generator=generator) * 0.05
        else:
            filled = torch.zeros(value.shape) if name.endswith("bias") else torch.ones(value.shape)
        state[name] = filled.bfloat16()
    return state


def build(cls: type[torch.nn.Module], named_in: Callable[..., Any], **arguments: Any) -> torch.nn.Module:
    """The host's own class; arguments that `named_in`, its constructor or dataclass, does not know are left out."""
    import comfy.ops

    known = inspect.signature(named_in).parameters
    given = {name: value for name, value in arguments.items() if name in known}
    return cls(**given, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init)


def wan(channels: int, inputs: int) -> torch.nn.Module:
    from comfy.ldm.wan.model import WanModel

    # The host reads the number of heads off the width, and takes the width of the text for given.
    sizes = {"model_type": "t2v", "dim": 256, "text_dim": 4096, "in_dim": inputs, "out_dim": channels}
    return build(WanModel, WanModel.__init__, **{**WAN, **sizes})


def hunyuan(version_15: bool) -> torch.nn.Module:
    from comfy.ldm.hunyuan_video.model import HunyuanVideo, HunyuanVideoParams

    # Sizes the host takes for given.
    sizes = {"mlp_ratio": 4.0} if version_15 else {"mlp_ratio": 4.0, "vec_in_dim": 768}
    return build(HunyuanVideo, HunyuanVideoParams, **{**(HUNYUAN15 if version_15 else HUNYUAN), **sizes})


def lora() -> dict[str, torch.Tensor]:
    """A LoRA on one projection of the tiny Wan model."""
    key = "diffusion_model.blocks.0.self_attn.q"
    return {f"{key}.lora_down.weight": torch.randn(4, 256) * 0.05, f"{key}.lora_up.weight": torch.randn(256, 4) * 0.05}


def main() -> None:
    comfyui, folder = sys.argv[1:]
    sys.path.insert(0, comfyui)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    from safetensors.torch import save_file

    torch.manual_seed(0)
    target = Path(folder)
    unets, loras = target / "diffusion_models", target / "loras"
    unets.mkdir(parents=True, exist_ok=True)
    loras.mkdir(exist_ok=True)
    plain = wan(16, 16)
    for seed, name in enumerate(
        (
            "wan2.1_t2v_14B_fp8_scaled",
            "wan2.1_t2v_1.3B_fp16",
            "wan2.2_t2v_high_noise_14B_fp8_scaled",
            "wan2.2_t2v_low_noise_14B_fp8_scaled",
        )
    ):
        save_file(randomised(plain, seed), unets / f"{name}.safetensors")
    with_image = wan(16, 36)
    for seed, side in enumerate(("high", "low")):
        save_file(randomised(with_image, seed), unets / f"wan2.2_i2v_{side}_noise_14B_fp8_scaled.safetensors")
        save_file(lora(), loras / f"wan2.2_i2v_lightx2v_4steps_lora_v1_{side}_noise.safetensors")
    save_file(randomised(wan(48, 48), 0), unets / "wan2.2_ti2v_5B_fp16.safetensors")
    save_file(randomised(hunyuan(False), 0), unets / "hunyuan_video_t2v_720p_bf16.safetensors")
    save_file(randomised(hunyuan(True), 0), unets / "hunyuanvideo1.5_720p_t2v_fp16.safetensors")


if __name__ == "__main__":
    main()
