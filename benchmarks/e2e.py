"""``python run.py bench e2e``: whole denoising steps of full-size models with random weights, dense against sparse.

Wan 14B and HunyuanVideo 1.5 at 720p, built on the device by their diffusers classes. Every density that the balanced
preset asks for in a run of 20 and of 4 steps is timed as one step; the factor of a run is the sum of its steps.
Without a GPU (or with --dry-run) tiny models of the same classes run on the CPU, and every time is marked as
unmeasured. JSON and Markdown go to benchmarks/results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideo15Transformer3DModel, WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from draftattn_core import Schedule, Settings
from draftattn_core.hosts.diffusers import apply_draft_attention
from draftattn_core.schedule import preset

from .kernels.__main__ import RESULTS
from .kernels.report import machine

RUNS = (20, 4)
TARGETS = {"Wan 14B 720p": 2.0, "HunyuanVideo 1.5 720p": 3.0}


@dataclass(frozen=True)
class Model:
    """A model in full size and in small, with one step's inputs."""

    name: str
    build: Callable[[bool], torch.nn.Module]
    inputs: Callable[[bool, torch.device, torch.dtype], dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """One timed step; `executed` is the share of all token pairs that were computed. Seconds None: unmeasured."""

    model: str
    density: float
    executed: float
    seconds: float | None
    backend: str


@dataclass(frozen=True)
class Run:
    """A run put together from its steps; `factor` is dense time over sparse time. None: unmeasured."""

    model: str
    steps: int
    executed: float
    factor: float | None


def wan(tiny: bool) -> torch.nn.Module:
    if tiny:
        return WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, num_layers=2, ffn_dim=32, text_dim=16, freq_dim=32
        )
    return WanTransformer3DModel()


def wan_inputs(tiny: bool, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    frames, height, width, text = (3, 16, 24, 16) if tiny else (21, 90, 160, 4096)
    return {
        "hidden_states": torch.randn(1, 16, frames, height, width, device=device, dtype=dtype),
        "timestep": torch.tensor([700], device=device),
        "encoder_hidden_states": torch.randn(1, 11 if tiny else 512, text, device=device, dtype=dtype),
    }


def hunyuan(tiny: bool) -> torch.nn.Module:
    if not tiny:
        return HunyuanVideo15Transformer3DModel(task_type="t2v")
    return HunyuanVideo15Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
    )


def hunyuan_inputs(tiny: bool, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    frames, height, width = (3, 8, 12) if tiny else (31, 45, 80)
    text, glyphs, image = (11, 6, 5) if tiny else (1000, 256, 729)
    sizes = (16, 8, 12) if tiny else (3584, 1472, 1152)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    return {
        "hidden_states": random(1, 65, frames, height, width),
        "timestep": torch.tensor([700.0], device=device),
        "encoder_hidden_states": random(1, text, sizes[0]),
        "encoder_attention_mask": torch.ones(1, text, device=device, dtype=torch.long),
        "encoder_hidden_states_2": random(1, glyphs, sizes[1]),
        "encoder_attention_mask_2": torch.zeros(1, glyphs, device=device, dtype=torch.long),
        "image_embeds": torch.zeros(1, image, sizes[2], device=device, dtype=dtype),
    }


MODELS = (Model("Wan 14B 720p", wan, wan_inputs), Model("HunyuanVideo 1.5 720p", hunyuan, hunyuan_inputs))


def densities_of(steps: int) -> list[float]:
    """Density of every step of a run at the balanced preset."""
    schedule = preset("balanced", steps)
    return [round(schedule.curve(step / steps), 6) for step in range(steps)]


@contextlib.contextmanager
def _built_on(device: torch.device, dtype: torch.dtype) -> Any:
    """Modules made inside have their parameters on `device` in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def seconds_of(run: Callable[[], object], repeats: int) -> float:
    """Median of CUDA event times after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


@torch.no_grad()
def steps_of(model: Model, measured: bool, backend: str, repeats: int) -> list[Step]:
    """Every density that one of `RUNS` asks for, as one step."""
    device = torch.device("cuda" if measured else "cpu")
    dtype = torch.bfloat16 if measured else torch.float32
    torch.manual_seed(0)
    with _built_on(device, dtype):
        transformer = model.build(not measured).eval()
    inputs = model.inputs(not measured, device, dtype)
    # On Hopper torch's own choice for dense attention is not the fastest one.
    kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

    def step() -> object:
        with sdpa_kernel(kernels, set_priority=True):
            return transformer(**inputs, return_dict=False)

    found = []
    for density in sorted({d for steps in RUNS for d in densities_of(steps)} | {1.0}, reverse=True):
        if density == 1.0:
            found.append(Step(model.name, 1.0, 1.0, seconds_of(step, repeats) if measured else None, "dense"))
            continue
        settings = Settings(schedule=Schedule(((0.0, density),)), backend=backend)
        with apply_draft_attention(transformer, settings, steps=1) as handle:
            if measured:
                seconds = seconds_of(step, repeats)
            else:
                seconds = None
                step()
            report = handle.finish_run()
        found.append(Step(model.name, density, report.executed_density(), seconds, backend))
    return found


def runs_of(steps: list[Step]) -> list[Run]:
    """Runs put together from measured steps."""
    by_density = {step.density: step for step in steps}
    runs = []
    for count in RUNS:
        taken = [by_density[density] for density in densities_of(count)]
        dense = by_density[1.0].seconds
        times = [step.seconds for step in taken if step.seconds is not None]
        factor = count * dense / sum(times) if dense is not None and len(times) == count else None
        runs.append(Run(steps[0].model, count, sum(step.executed for step in taken) / count, factor))
    return runs


def markdown(report: dict[str, Any]) -> str:
    def cell(value: float | None, form: str) -> str:
        return "unmeasured" if value is None else format(value, form)

    lines = ["# End to end", "", "  \n".join(f"{key}: {value}" for key, value in report["machine"].items()), ""]
    if not report["measured"]:
        lines += ["Tiny models of the same classes: the densities are those of tiny grids.", ""]
    lines += ["| model | density | executed | s per step | backend |", "|---|---|---|---|---|"]
    for s in report["steps"]:
        seconds = cell(s["seconds"], ".3f")
        lines.append(f"| {s['model']} | {s['density']:.2f} | {s['executed']:.3f} | {seconds} | {s['backend']} |")
    lines += [
        "",
        "| model, balanced preset | steps | executed | x dense | target (20 steps, H200) |",
        "|---|---|---|---|---|",
    ]
    for r in report["runs"]:
        factor, target = cell(r["factor"], ".2f"), TARGETS[r["model"]] if r["steps"] == RUNS[0] else ""
        lines.append(f"| {r['model']} | {r['steps']} | {r['executed']:.3f} | {factor} | {target} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench e2e", description="Time whole denoising steps.")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU, nothing is timed")
    parser.add_argument("--backend", default="auto", help="backend of the sparse steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(argv)
    measured = torch.cuda.is_available() and not options.dry_run
    steps, runs = [], []
    for model in MODELS:
        of_model = steps_of(model, measured, options.backend, options.repeats)
        steps += of_model
        runs += runs_of(of_model)
        if measured:
            torch.cuda.empty_cache()
    report = {
        "machine": machine(measured),
        "measured": measured,
        "steps": [asdict(step) for step in steps],
        "runs": [asdict(run) for run in runs],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "e2e" if measured else "e2e-dry-run"
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page = markdown(report)
    (options.out / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
