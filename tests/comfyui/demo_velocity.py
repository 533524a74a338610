"""Runs in ComfyUI's Python: python demo_velocity.py COMFYUI MODEL IN OUT

Loads MODEL as UNETLoader does and answers the velocity of the tensors x, timestep and text of IN (safetensors) in OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    comfyui, model, given, out = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent))
    import host

    host.start(comfyui)
    import comfy.sd

    patcher = comfy.sd.load_diffusion_model(model, model_options={"dtype": torch.float32})
    network = patcher.model.diffusion_model
    inputs = load_file(given)
    with torch.no_grad():
        velocity = network(inputs["x"], inputs["timestep"], context=inputs["text"])
    save_file({"velocity": velocity.contiguous(), "heads": torch.tensor(network.num_heads)}, out)


if __name__ == "__main__":
    main()
