"""The nodes that schedule, report, draw and compare, in real ComfyUI installations: one process per host."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from demo.comfyui_path import NOT_FOUND, ComfyUIInstall, find_all_comfyui

HERE = Path(__file__).parent
TIMEOUT = 600
INSTALLS = find_all_comfyui()


def names(module: str) -> list[str]:
    """First arguments of the module's `@check(...)`, in order; the module itself needs ComfyUI to import."""
    tree = ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8"))
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [str(ast.literal_eval(call.args[0])) for call in made if call.func.id == "check"]


@lru_cache
def results(install: ComfyUIInstall, module: str, folder: Path) -> dict[str, Any]:
    """What run_checks.py wrote, by name of the check."""
    out = folder / f"{module}-{install.path.name}.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [str(install.python), str(HERE / "run_checks.py"), str(install.path), module, str(out)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    if not out.exists():
        pytest.fail(f"ComfyUI {install.version} did not start:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))["results"]
    return found


@pytest.mark.comfyui
@pytest.mark.skipif(not INSTALLS, reason=NOT_FOUND)
@pytest.mark.parametrize("install", INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
@pytest.mark.parametrize("name", names("check_panel"))
def test_check(install: ComfyUIInstall, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    result = results(install, "check_panel", tmp_path_factory.getbasetemp()).get(name)
    assert result is not None, f"the check {name!r} did not run"
    assert result["outcome"] == "passed", result["detail"]
