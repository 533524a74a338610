"""Other versions of Triton beside the installed one, for checks of the kernels with what users have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tools.aot.store import ROOT, WORK


class InstallError(Exception):
    """Why a version of Triton cannot be had, in words for the user."""


def run_with(version: str, arguments: list[str]) -> int:
    """Run `bench aot` again with another Triton in front of the installed one, and return its exit code.

    Raises:
        InstallError: if pip cannot install that version.
    """
    paths = [str(install(version)), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "tools.aot.__main__", *arguments]
    return subprocess.call(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})


def install(version: str) -> Path:
    """A folder that holds this version of Triton (Triton alone: the kernels need no more of torch than its tensors)."""
    if not re.fullmatch(r"\d+(\.\d+)+", version):
        raise InstallError(f"{version!r} is no version of Triton: give one such as 3.6.0")
    folder = WORK / f"triton-{version}"
    if not (folder / f"triton-{version}.dist-info" / "RECORD").exists():
        print(f"installing Triton {version} into {folder.relative_to(ROOT)} (up to 1 GB)", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*pip, "--upgrade", "--target", str(folder), f"triton=={version}"])
        if done.returncode:
            raise InstallError(f"pip could not install Triton {version} (its reason is above)")
    return folder
