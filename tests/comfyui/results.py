"""Run the checks of check_*.py in a ComfyUI's own Python, one process per group of files, and read what came out."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.comfyui.model_cases import CASES
from tools.comfyui.path import ComfyUIInstall

HERE = Path(__file__).parent
TIMEOUT = 3600
# One process per group and host; compiling comes last, for what it imports changes paths of ours.
GROUPS = (
    ("check_models", "check_hunyuan15"),
    (
        "check_chain",
        "check_conditions",
        "check_noise",
        "check_profiles",
        "check_published",
        "check_trained",
        "check_runs",
        "check_evaluate",
        "check_skip",
        "check_skip_runs",
        "check_skip_samplers",
        "check_skip_models",
        "check_skip_report",
        "check_skip_choices",
        "check_skip_published",
        "check_saved_graphs",
        "check_failures",
        "check_told",
        "check_panel",
        "check_compile",
    ),
)
# What docs/compatibility.md shows, in this order.
MODULES = tuple(module for group in GROUPS for module in group)


def names(module: str) -> list[str]:
    """Names of a module's checks: of the models it goes through, or first arguments of its `@check(...)`."""
    if module == "check_models":
        return [case.name for case in CASES]
    source = (HERE / f"{module}.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "check"]
    return [str(ast.literal_eval(call.args[0])) for call in made]


@lru_cache
def start_up(install: ComfyUIInstall, folder: Path) -> dict[str, Any]:
    """What start_up.py prints, and under "complaints" what it wrote to stderr; kept in the folder."""
    out = folder / f"start-up-{install.path.name}.json"
    if not out.exists():
        (folder / "broken" / "triton").mkdir(parents=True, exist_ok=True)
        (folder / "broken" / "triton" / "__init__.py").write_text("raise ImportError('no Triton here')\n")
        command = [str(install.python), str(HERE / "start_up.py"), str(install.path), str(folder / "broken")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=True)
        printed = json.loads(done.stdout.splitlines()[-1])
        out.write_text(json.dumps({**printed, "complaints": done.stderr}), encoding="utf-8")
    kept: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return kept


def results(install: ComfyUIInstall, module: str, folder: Path) -> dict[str, Any]:
    """Outcomes by name of the module's checks, as run_checks.py writes them; under "" why it wrote nothing.

    Args:
        folder: where the process runs and writes; results that an earlier one has left there are not made again.
    """
    group = next(group for group in GROUPS if module in group)
    found = _run(install, group, folder)
    return {name: found[name] for name in ("", *names(module)) if name in found}


@lru_cache
def _run(install: ComfyUIInstall, modules: tuple[str, ...], folder: Path) -> dict[str, Any]:
    out = folder / f"{modules[0]}-{install.path.name}.json"
    missing = [name for module in modules for name in names(module) if name not in _read(out)]
    if not missing:
        return _read(out)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [str(install.python), str(HERE / "run_checks.py"), str(install.path), ",".join(modules), str(out)]
    done = subprocess.run(
        [*command, *missing], env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT
    )
    if not out.exists():
        return {"": f"ComfyUI {install.version} did not start:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"}
    return _read(out)


def _read(out: Path) -> dict[str, Any]:
    """Results by name in a file of run_checks.py; none if it is not there."""
    return dict(json.loads(out.read_text(encoding="utf-8"))["results"]) if out.exists() else {}
