"""The frontier's rows of ComfyUI's own step caches, against the nodes of real ComfyUI installations."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.comfyui.results import HERE, TIMEOUT, names
from tools.comfyui.path import NOT_FOUND, ComfyUIInstall, find_all_comfyui

INSTALLS = find_all_comfyui()


@pytest.mark.comfyui
@pytest.mark.skipif(not INSTALLS, reason=NOT_FOUND)
@pytest.mark.parametrize("install", INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
def test_our_statement_of_them_decides_as_they_do(install: ComfyUIInstall, tmp_path: Path) -> None:
    module, out = "check_core_caches", tmp_path / "results.json"
    command = [str(install.python), str(HERE / "run_checks.py"), str(install.path), module, str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    assert out.exists(), done.stderr[-4000:]
    found = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert set(found) == set(names(module))
    assert all(result["outcome"] in ("passed", "skipped") for result in found.values()), found
