"""``python -m tests.type_check``: mypy over the pack under the name it installs as, whatever its folder is called.

mypy names modules after folders, and relative imports resolve only under a package's own name. So it runs over a
temporary folder that shows the pack as `draftattention` and, beside it, what imports it by that name. Settings stand
in pyproject.toml.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(os.path.abspath(__file__)).parents[1]
PACKAGE = "draftattention"
INSIDE = ("__init__.py", "draftattn_core", "kernels", "nodes")
BESIDE = ("run.py", "tests", "tools")


def type_check(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run mypy over a checkout; paths in what it prints are relative to the checkout.

    Args:
        root: the checkout; its pyproject.toml names the files to check as they lie in the temporary folder.
        arguments: for mypy.
    """
    with tempfile.TemporaryDirectory() as folder:
        view = Path(folder)
        (view / PACKAGE).mkdir()
        for names, target in ((INSIDE, view / PACKAGE), (BESIDE, view)):
            for name in names:
                if (root / name).exists():
                    _show(root / name, target / name)
        command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml")]
        command += ["--cache-dir", str(root / ".mypy_cache"), *arguments]
        result = subprocess.run(command, cwd=view, capture_output=True, text=True, encoding="utf-8")
    prefix = re.compile(rf"^{PACKAGE}[/\\]", re.MULTILINE)
    return subprocess.CompletedProcess(command, result.returncode, prefix.sub("", result.stdout), result.stderr)


def _show(source: Path, target: Path) -> None:
    """Link a file or folder, or copy it where links are not allowed."""
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)


if __name__ == "__main__":
    checked = type_check(ROOT, *sys.argv[1:])
    print(checked.stdout, end="")
    print(checked.stderr, end="", file=sys.stderr)
    sys.exit(checked.returncode)
