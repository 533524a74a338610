"""Wan 2.1 in diffusers with draft attention: `python docs/examples/diffusers_wan.py "a cat walks on grass"`.

It downloads the model, whose text encoder alone takes gigabytes, wants a GPU, and needs packages beside ours:
pip install diffusers transformers accelerate ftfy imageio imageio-ffmpeg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.utils import export_to_video

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from draftattention import Settings, apply_draft_attention
from draftattention.draftattn_core.run.schedule import preset
from draftattention.draftattn_core.run.step_cache import StepCacheSettings
from draftattention.draftattn_core.run.step_cache.settings import RULES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--model", default="Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--density", type=float, help="share of block pairs computed after the dense start")
    parser.add_argument("--skip", choices=RULES, default="off", help="rule that skips steps, best spread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="wan.mp4")
    arguments = parser.parse_args()

    settings = Settings(
        schedule=preset("balanced", arguments.steps, arguments.density), skip=StepCacheSettings(arguments.skip)
    )
    vae = AutoencoderKLWan.from_pretrained(arguments.model, subfolder="vae", torch_dtype=torch.float32)
    pipe = WanPipeline.from_pretrained(arguments.model, vae=vae, torch_dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()

    with apply_draft_attention(pipe.transformer, settings, scheduler=pipe.scheduler) as handle:
        video = pipe(
            arguments.prompt,
            height=480,
            width=832,
            num_frames=81,
            num_inference_steps=arguments.steps,
            generator=torch.Generator().manual_seed(arguments.seed),
        ).frames[0]
    export_to_video(video, arguments.out, fps=16)
    print(handle.report.summary())


if __name__ == "__main__":
    main()
