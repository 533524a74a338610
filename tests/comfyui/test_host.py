"""Against real ComfyUI installations: every check of check_*.py, in each host's own Python, one process per file.

The checks are read from the `CHECKS` dictionaries of those files; their names here come from lists that need no
ComfyUI. Without a ComfyUI everything is skipped with the reason.
"""

from __future__ import annotations

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


def _names(module: str) -> list[str]:
    """Names of a module's checks: the first argument of every `@check(...)` and of every `Case(...)` it tests."""
    import ast

    source = HERE / ("model_cases.py" if module == "check_models" else f"{module}.py")
    calls = [node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("Case", "check")]
    return [call.args[0].value for call in made if isinstance(call.args[0], ast.Constant)]


@lru_cache
def _results(install: ComfyUIInstall, module: str, folder: Path) -> dict[str, Any]:
    out = folder / f"{module}-{install.path.name}.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [str(install.python), str(HERE / "run_checks.py"), str(install.path), module, str(out)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    if not out.exists():
        pytest.fail(f"ComfyUI {install.version} did not start:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found = json.loads(out.read_text(encoding="utf-8"))["results"]
    found["log"] = done.stderr
    return found


@pytest.mark.comfyui
@pytest.mark.skipif(not INSTALLS, reason=NOT_FOUND)
@pytest.mark.parametrize("install", INSTALLS or [None], ids=lambda i: f"ComfyUI-{i.version}" if i else "none")
@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module in ("check_models", "check_behaviour") for name in _names(module)],
)
def test_check(install: ComfyUIInstall, module: str, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    result = _results(install, module, tmp_path_factory.getbasetemp()).get(name)
    assert result is not None, f"the check {name!r} did not run"
    if result["outcome"] == "skipped":
        pytest.skip(f"ComfyUI {install.version}: {result['detail']}")
    assert result["outcome"] == "passed", result["detail"]
