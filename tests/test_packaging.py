"""What reaches a user: the pack loads without ComfyUI, the registry accepts it, and its archive holds no ballast."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.published import clone_into, comfy_node
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


ANY_FOLDER = """
import importlib.util, pathlib, sys
import torch

torch.manual_seed(0)
q = torch.randn(1, 1, 3 * 5 * 7, 16)
outputs = []

def use(module, folder):
    layout = module.Layout(module.TokenGrid(3, 5, 7), q_block=16, k_block=16)
    outputs.append(module.draft_attention(q, q, q, layout, module.Policy(density=0.3)))
    assert pathlib.Path(module.draft_attention.__code__.co_filename) == folder / "draftattn_core" / "attention.py"

for folder in map(pathlib.Path, sys.argv[1:]):
    # The name that ComfyUI gives a pack.
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    use(module, folder)

    sys.path.insert(0, str(folder))
    import draftattention
    use(draftattention, folder)
    sys.path.remove(str(folder))
    for loaded in [name for name in sys.modules if name.split(".")[0] == "draftattention"]:
        del sys.modules[loaded]

assert all(torch.equal(out, outputs[0]) for out in outputs)
print(len(outputs))
"""


def test_the_same_files_load_from_a_folder_of_any_name(tmp_path: Path) -> None:
    """As ComfyUI loads them and by the name they install as, several copies in one process."""
    folders = [tmp_path / name for name in ("draft attention-0.1.0 (2)", "ComfyUI-DraftAttention@1.2-rc.1", "nodes")]
    for folder in folders:
        for part in ("draftattn_core", "kernels"):
            shutil.copytree(PACK_ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("__init__.py", "draftattention.py"):
            shutil.copy(PACK_ROOT / part, folder / part)
    command = [sys.executable, "-c", ANY_FOLDER, *map(str, folders)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.strip() == "6", result.stderr


def test_installing_the_pack_installs_nothing_that_comfyui_lacks() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((PACK_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["dependencies"]) <= BROUGHT_BY_COMFYUI
    assert not [name for name in ("requirements.txt", "install.py") if (PACK_ROOT / name).exists()]


@pytest.fixture(scope="module")
def published_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of its own, so that packing leaves the working tree alone."""
    return clone_into(tmp_path_factory.mktemp("published"))


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
    unwanted = (
        "tests/",
        "benchmarks/",
        "docs/",
        "assets/",
        "demo/",
        "tools/",
        ".",
        "run.py",
        "setup.py",
        "requirements",
    )
    assert not [name for name in names if name.startswith(unwanted)]
    assert not [name for name in names if name.endswith((".safetensors", ".mp4", ".gif", ".zip"))]
    assert archive.stat().st_size < 2 * MEGABYTE
