"""What reaches a user: the pack loads without ComfyUI, the registry accepts it, and its archive holds no ballast."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.comfyui.path import PACK_ROOT

MEGABYTE = 1 << 20
# Packages that ComfyUI's own requirements bring at every version from 0.14.0 on.
BROUGHT_BY_COMFYUI = {"torch", "numpy", "einops", "safetensors", "pillow"}


LOADER = """
import importlib.util, inspect, sys
spec = importlib.util.spec_from_file_location("some_pack", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["some_pack"] = module
spec.loader.exec_module(module)
assert inspect.iscoroutinefunction(module.comfy_entrypoint)
print(sorted(name for name in sys.modules if name.startswith("some_pack.") or name in ("torch", "triton")))
"""


def test_the_pack_loads_without_comfyui_and_imports_nothing_yet() -> None:
    # In a process of its own: other tests import the pack's parts into this one.
    command = [sys.executable, "-c", LOADER, str(PACK_ROOT / "__init__.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_checkout_is_importable_under_the_name_it_installs_as() -> None:
    import draftattention

    assert Path(draftattention.draft_attention.__code__.co_filename) == PACK_ROOT / "draftattn_core" / "attention.py"
    for name in draftattention.__all__:
        assert getattr(draftattention, name) is not None


def test_installing_the_pack_installs_nothing_that_comfyui_lacks() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((PACK_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["dependencies"]) <= BROUGHT_BY_COMFYUI
    assert not [name for name in ("requirements.txt", "install.py") if (PACK_ROOT / name).exists()]


@pytest.fixture(scope="module")
def published_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files as a git checkout of its own, so that packing leaves the working tree alone."""
    if importlib.util.find_spec("comfy_cli") is None:
        pytest.skip("comfy-cli is not installed")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PACK_ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so what would be published is not known")
    tree = tmp_path_factory.mktemp("published")
    for name in filter(None, listed.stdout.split("\0")):
        if (PACK_ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PACK_ROOT / name, tree / name)
    subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
    subprocess.run(["git", "add", "--force", "."], cwd=tree, check=True)
    return tree


def comfy_node(action: str, tree: Path, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", action]
    # Another home: comfy-cli writes its settings there, and the user's own stay as they are.
    environment = {**os.environ, "HOME": str(home), "USERPROFILE": str(home), "PYTHONUTF8": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_the_registry_accepts_the_pack_without_warnings(published_tree: Path, tmp_path: Path) -> None:
    result = comfy_node("validate", published_tree, tmp_path)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "All validation checks passed" in output
    # Its security rules only warn, and end with 0.
    assert not [word for word in ("arning", "S102", "S307", "E702") if word in output], output


def test_the_archive_holds_what_runs_in_comfyui_and_nothing_else(published_tree: Path, tmp_path: Path) -> None:
    result = comfy_node("pack", published_tree, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    archive = published_tree / "node.zip"
    names = set(zipfile.ZipFile(archive).namelist())

    assert {"__init__.py", "pyproject.toml", "LICENSE", "README.md", "draftattn_core/__init__.py"} <= names
    assert "nodes/extension.py" in names
    unwanted = ("tests/", "benchmarks/", "docs/", "assets/", "demo/", "tools/", ".", "run.py", "requirements")
    assert not [name for name in names if name.startswith(unwanted)]
    assert not [name for name in names if name.endswith((".safetensors", ".mp4", ".gif", ".zip"))]
    assert archive.stat().st_size < 2 * MEGABYTE
