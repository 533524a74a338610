"""Draft attention over several ranks in diffusers, on a tiny random Wan:

    torchrun --nproc-per-node 2 docs/examples/diffusers_ranks.py                 # two CPU processes
    torchrun --nproc-per-node 2 docs/examples/diffusers_ranks.py --device cuda   # two GPUs

It samples once dense and once sparse over the ranks, with guidance, and says how far apart the results are. With a real
pipeline the three calls in `over_ranks` and `main` are the same: init_process_group, enable_parallelism on
pipe.transformer, apply_draft_attention on every rank. Tested with diffusers 0.42.1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, WanTransformer3DModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from draftattention import Settings, apply_draft_attention
from draftattention.draftattn_core.run.schedule import Schedule

LATENT = (1, 4, 4, 16, 24)  # 4 x 8 x 12 = 384 tokens after patching, divisible by 2, 4 and 8 ranks


def tiny_wan(device: torch.device) -> Any:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=8, attention_head_dim=64, in_channels=4, out_channels=4, text_dim=32, freq_dim=32,
        ffn_dim=256, num_layers=2,
    )  # fmt: skip
    return model.eval().requires_grad_(False).to(device)


def over_ranks(model: Any, device: str) -> None:
    """Split the model's tokens over all processes, heads between the exchanges."""
    ranks = dist.get_world_size()
    mesh = dist.device_mesh.init_device_mesh(device, (1, ranks), mesh_dim_names=("ring", "ulysses"))
    config = ContextParallelConfig(ulysses_degree=ranks, mesh=mesh)
    with contextlib.ExitStack() as stack:
        if device == "cpu":
            # diffusers asks for the accelerator of a rank before it looks at the mesh: here the CPU is one.
            stack.enter_context(mock.patch("torch._C._get_accelerator", lambda: torch.device("cpu")))
            stack.enter_context(mock.patch("torch.accelerator.device_count", lambda: 1))
        model.enable_parallelism(config=config)


def sample(model: Any, settings: Settings, device: torch.device, steps: int) -> tuple[torch.Tensor, Any]:
    """An Euler run with guidance; the latent and the report of all ranks. Every rank draws the same noise."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(LATENT, generator=generator).to(device)
    prompt = torch.randn(1, 16, 32, generator=generator).to(device)
    levels = torch.linspace(1.0, 0.0, steps + 1)
    with apply_draft_attention(model, settings, timesteps=(1000 * levels[:-1]).tolist()) as handle:
        for now, later in zip(levels, levels[1:]):
            timestep = (1000 * now).to(device).reshape(1)
            cond, uncond = (
                model(hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False)[0]
                for text in (prompt, torch.zeros_like(prompt))
            )
            x = x + (later - now).to(device) * (uncond + 3.0 * (cond - uncond))
        return x, handle.finish_run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--density", type=float, default=0.3, help="share of block pairs computed")
    arguments = parser.parse_args()

    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if arguments.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        model = tiny_wan(device)
        over_ranks(model, device.type)
        dense, _ = sample(model, Settings(schedule=Schedule(((0.0, 1.0),))), device, arguments.steps)
        sparse, report = sample(
            model, Settings(schedule=Schedule(((0.0, arguments.density),))), device, arguments.steps
        )
        if dist.get_rank() == 0:
            print(report.summary())
            far = float((sparse - dense).norm() / dense.norm())
            print(f"{dist.get_world_size()} ranks on {device.type}: relative L2 distance from the dense run {far:.3f}")
        # Ranks end together: on a busy machine one that left the group early was seen to abort.
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
