"""Against real ComfyUI installations: every check of check_*.py, in each host's own Python, one process per file.

Without a ComfyUI everything is skipped with the reason.
"""

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
    """Names of a module's checks: first arguments of its `@check(...)`, or of the `Case(...)`s it goes through."""
    source = HERE / ("model_cases.py" if module == "check_models" else f"{module}.py")
    calls = [node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("Case", "check")]
    return [str(ast.literal_eval(call.args[0])) for call in made]


@lru_cache
def results(install: ComfyUIInstall, module: str, folder: Path) -> dict[str, Any]:
    """What run_checks.py wrote, by name of the check; under "" why it wrote nothing."""
    out = folder / f"{module}-{install.path.name}.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [str(install.python), str(HERE / "run_checks.py"), str(install.path), module, str(out)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    if not out.exists():
        return {"": f"ComfyUI {install.version} did not start:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"}
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))["results"]
    return found


@pytest.mark.comfyui
@pytest.mark.skipif(not INSTALLS, reason=NOT_FOUND)
@pytest.mark.parametrize("install", INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module in ("check_models", "check_behaviour") for name in names(module)],
)
def test_check(install: ComfyUIInstall, module: str, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = results(install, module, tmp_path_factory.getbasetemp())
    assert name in found, found.get("", f"the check {name!r} did not run")
    if found[name]["outcome"] == "skipped":
        pytest.skip(f"ComfyUI {install.version}: {found[name]['detail']}")
    assert found[name]["outcome"] == "passed", found[name]["detail"]
