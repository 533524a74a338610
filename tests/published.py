"""The pack as others get it: a clone of the repository, and the archive that the Comfy registry hands out."""

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


def tracked_files() -> list[str]:
    """Paths of the files git tracks, with forward slashes; the test is skipped where this is no git checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PACK_ROOT, capture_output=True, text=True, encoding="utf-8")
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so what would be published is not known")
    return [name for name in listed.stdout.split("\0") if name and (PACK_ROOT / name).is_file()]


def clone_into(target: Path) -> Path:
    """Copy the tracked files, as they are in the working tree now, into a git checkout of its own."""
    for name in tracked_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACK_ROOT / name, target / name)
    subprocess.run(["git", "init", "--quiet"], cwd=target, check=True)
    subprocess.run(["git", "add", "--force", "."], cwd=target, check=True)
    return target


def comfy_node(action: str, tree: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """`comfy node validate` or `pack` in a checkout; comfy-cli writes its settings into the given home folder."""
    if importlib.util.find_spec("comfy_cli") is None:
        pytest.skip("comfy-cli is not installed")
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", action]
    environment = {**os.environ, "HOME": str(home), "USERPROFILE": str(home), "PYTHONUTF8": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, encoding="utf-8")


def unpacked_archive_into(target: Path, tree: Path, home: Path) -> Path:
    """Pack a checkout for the registry and unpack the archive, as ComfyUI-Manager does."""
    result = comfy_node("pack", tree, home)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(tree / "node.zip") as archive:
        archive.extractall(target)
    return target
