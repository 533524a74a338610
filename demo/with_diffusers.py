"""The demo's runs on the diffusers class, in this process."""

from __future__ import annotations

import argparse
import time

from tqdm import tqdm

from demo import checkpoint
from demo.latent import latent_to_rgb
from demo.methods import DENSE, METHODS, settings
from demo.result import MethodRun, cpu_name
from demo.sample import sample, sigmas
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.views.charts import density_map

SHIFT = 5.0
CFG = 1.0


def run_methods(arguments: argparse.Namespace) -> tuple[dict[str, MethodRun], str, str]:
    """Sample one seed with every method; returns the runs, the device in words and the baseline in words."""
    model = checkpoint.load(device=arguments.device)
    timesteps = (1000 * sigmas(arguments.steps, SHIFT)[:-1]).tolist()

    def run(method: str, bar: tqdm) -> MethodRun:
        chosen = settings(method, arguments.density, arguments.steps)
        with apply_draft_attention(model, chosen, timesteps=timesteps) as handle:
            start = time.perf_counter()
            x0 = sample(
                model,
                arguments.prompt,
                tuple(arguments.grid),
                steps=arguments.steps,
                seed=arguments.seed,
                shift=SHIFT,
                cfg=CFG,
                callback=lambda *_: bar.update(),
            )
            seconds = time.perf_counter() - start
            picture = density_map(handle.report, f"{method}: density of every attention call")
            return MethodRun(latent_to_rgb(x0)[0], handle.report.to_dict(), picture, seconds)

    runs: dict[str, MethodRun] = {}
    with tqdm(total=len(METHODS) * arguments.steps, unit="step") as bar:
        for method in METHODS:
            bar.set_description(method)
            runs[method] = run(method, bar)
    device = cpu_name() if arguments.device == "cpu" else arguments.device
    return runs, device, f"torch SDPA ({DENSE} run of the same seed on the same device)"
