"""The samplers of `bench frontier` end where those of real ComfyUI installations do, on a flow known in closed form."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks.frontier.samplers import levels_of, sample
from tests.comfyui.results import HERE, TIMEOUT
from tests.comfyui.toy_flow import denoised, start
from tools.comfyui.path import NOT_FOUND, ComfyUIInstall, find_all_comfyui

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

INSTALLS = find_all_comfyui()
# Of two steps both of dpmpp_2m are Euler's.
STEPS = (3, 4, 5, 8, 10, 20)


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
            ours = sample(lambda x, level: (x - denoised(x, level)) / level, start(steps), name, steps).flatten()  # type: ignore[arg-type]
            apart = min((expected - other).norm() for key, other in ends.items() if key != name)
            off = (ours - expected).norm()
            # Euler's levels are even here, and taken from a table of a thousand there.
            assert off < (0.003 * expected.norm() if name == "euler" else 1e-4 * expected.norm()), (name, steps)
            assert off < 0.1 * apart, (name, steps, "no nearer to it than the other samplers are")
            levels = levels_of(name, steps)  # type: ignore[arg-type]
            assert levels[:-1] == pytest.approx(host[name][str(steps)]["levels"][:-1], abs=1e-3)
