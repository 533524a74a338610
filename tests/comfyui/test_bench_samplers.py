"""The samplers of `bench frontier` end where those of real ComfyUI installations do, on a flow known in closed form."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from benchmarks.frontier.noisy import noisy_levels, sample_noisy
from benchmarks.frontier.samplers import SHIFT, levels_of, sample
from tests.comfyui.results import HERE, TIMEOUT
from tests.comfyui.toy_flow import denoised, noise_of, start
from tools.comfyui.path import NOT_FOUND, ComfyUIInstall, find_all_comfyui

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

INSTALLS = find_all_comfyui()
# Of two steps both of dpmpp_2m are Euler's.
STEPS = (3, 4, 5, 8, 10, 20)
NOISY = ("euler_ancestral", "dpmpp_2m_sde")


def velocity(x: Tensor, level: float) -> Tensor:
    return (x - denoised(x, level)) / level


def ours(name: Any, steps: int) -> tuple[list[float], Tensor]:
    """Levels and latent of the bench's own statement of a sampler."""
    if name in NOISY:
        latent = sample_noisy(velocity, start(steps), noise_of(steps), name, steps, SHIFT)
        return noisy_levels(name, steps, SHIFT), latent.flatten()
    return levels_of(name, steps), sample(velocity, start(steps), name, steps).flatten()


@pytest.mark.comfyui
@pytest.mark.skipif(not INSTALLS, reason=NOT_FOUND)
@pytest.mark.parametrize("install", INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
def test_levels_and_latents_are_the_hosts(install: ComfyUIInstall, tmp_path: Path) -> None:
    out = tmp_path / "sampled.json"
    command = [str(install.python), str(HERE / "host_samplers.py"), str(install.path), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [*command, ",".join(map(str, STEPS))],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert out.exists(), done.stderr[-4000:]
    host: dict[str, dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
    for steps in STEPS:
        ends = {name: torch.tensor(made[str(steps)]["latent"]) for name, made in host.items()}
        for name, expected in ends.items():
            levels, latent = ours(name, steps)
            apart = min((expected - other).norm() for key, other in ends.items() if key != name)
            off = (latent - expected).norm()
            # Euler's levels are even here, and taken from a table of a thousand there.
            assert off < (0.003 * expected.norm() if name == "euler" else 1e-4 * expected.norm()), (name, steps)
            assert off < 0.1 * apart, (name, steps, "no nearer to it than the other samplers are")
            assert levels[:-1] == pytest.approx(host[name][str(steps)]["levels"][:-1], abs=1e-3)
