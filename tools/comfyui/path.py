"""Where ComfyUI is on this machine, and which Python runs it.

Used by the demo (``--host comfyui``) and by the tests; standard library only.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Not resolved: a pack linked into custom_nodes belongs to the ComfyUI that holds the link.
PACK_ROOT = Path(os.path.abspath(__file__)).parents[2]

_LANDMARKS = ("main.py", "nodes.py", "folder_paths.py", "comfy")
_VENV_PYTHONS = (
    ".venv/bin/python",
    ".venv/Scripts/python.exe",
    "venv/bin/python",
    "venv/Scripts/python.exe",
    "../python_embeded/python.exe",  # the portable build for Windows; this is how its folder is spelled
)

NOT_FOUND = (
    "no ComfyUI found: set COMFYUI_PATH to its folder (also looked at the folder that holds this pack's custom_nodes, "
    "and at ComfyUI in the home folder)"
)


class ComfyUIPathError(ValueError):
    """An environment variable names a ComfyUI folder or a Python that is not there; the message says which."""


@dataclass(frozen=True)
class ComfyUIInstall:
    """One ComfyUI: its folder, the Python that runs it, and how the folder was found."""

    path: Path
    python: Path
    found_by: str

    @property
    def version(self) -> str:
        """ComfyUI's own version, such as ``0.33.0``; ``unknown`` where it does not say."""
        try:
            text = (self.path / "comfyui_version.py").read_text(encoding="utf-8")
        except OSError:
            return "unknown"
        match = re.search(r"""__version__\s*=\s*["']([^"']+)["']""", text)
        return match.group(1) if match else "unknown"


def find_comfyui(
    environ: Mapping[str, str] | None = None, *, pack_root: Path = PACK_ROOT, home: Path | None = None
) -> ComfyUIInstall | None:
    """Find the ComfyUI to use, or None.

    Looked at in this order: ``COMFYUI_PATH``, the ComfyUI in whose ``custom_nodes`` this pack lies, ``ComfyUI`` in the
    home folder. Its Python is ``COMFYUI_PYTHON``, else the one of its ``.venv`` or ``venv``, else the portable build's
    ``../python_embeded``, else the running one.

    Raises:
        ComfyUIPathError: ``COMFYUI_PATH`` is set but is no ComfyUI, or ``COMFYUI_PYTHON`` is set but is no file. A
            variable that is set is never passed over in silence.
    """
    environ = os.environ if environ is None else environ
    named = environ.get("COMFYUI_PATH", "")
    if named:
        return _install(_checked(named, "COMFYUI_PATH"), environ, "COMFYUI_PATH")
    if pack_root.parent.name == "custom_nodes" and is_comfyui(pack_root.parent.parent):
        return _install(pack_root.parent.parent, environ, "this pack's custom_nodes")
    at_home = (Path.home() if home is None else home) / "ComfyUI"
    return _install(at_home, environ, "the home folder") if is_comfyui(at_home) else None


def find_all_comfyui(environ: Mapping[str, str] | None = None) -> list[ComfyUIInstall]:
    """Every ComfyUI to test against: those in ``COMFYUI_PATHS`` (joined as in PATH), else what find_comfyui finds.

    Raises:
        ComfyUIPathError: as find_comfyui, for any of the paths.
    """
    environ = os.environ if environ is None else environ
    named = [path for path in environ.get("COMFYUI_PATHS", "").split(os.pathsep) if path]
    if named:
        return [_install(_checked(path, "COMFYUI_PATHS"), environ, "COMFYUI_PATHS") for path in named]
    found = find_comfyui(environ)
    return [] if found is None else [found]


def is_comfyui(path: Path) -> bool:
    """Whether the folder holds a ComfyUI."""
    return all((path / landmark).exists() for landmark in _LANDMARKS)


def _checked(named: str, variable: str) -> Path:
    path = Path(named).expanduser().absolute()
    if not is_comfyui(path):
        raise ComfyUIPathError(f"{variable} names {named}, which is not a ComfyUI folder (it should hold main.py)")
    return path


def _install(path: Path, environ: Mapping[str, str], found_by: str) -> ComfyUIInstall:
    return ComfyUIInstall(path, _python(path, environ), found_by)


def _python(path: Path, environ: Mapping[str, str]) -> Path:
    named = environ.get("COMFYUI_PYTHON", "")
    if named:
        python = Path(named).expanduser().absolute()
        if not python.is_file():
            raise ComfyUIPathError(f"COMFYUI_PYTHON names {named}, which is not a file")
        return python
    for relative in _VENV_PYTHONS:
        python = path / relative
        if python.is_file():
            return python
    return Path(sys.executable)
