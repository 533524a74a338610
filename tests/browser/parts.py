"""What the browser tests need on this machine: Playwright, a Chromium, a ComfyUI, and front ends to try.

A second front end is named by COMFYUI_FRONT_ENDS: folders that hold a front end's index.html, joined as in PATH. Each
is the `static` folder of an unpacked comfyui-frontend-package.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.comfyui.path import NOT_FOUND, find_comfyui

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
NO_PLAYWRIGHT = "browser tests: playwright is not installed"
NO_CHROMIUM = "browser tests: no Chromium found (install it, or set CHROMIUM_PATH to its executable)"
NO_SECOND = "browser tests: no second front end (set COMFYUI_FRONT_ENDS to the folder of its index.html)"


@dataclass(frozen=True)
class FrontEnd:
    """A front end: its folder, or None for the one that the host brings; and a name for test ids."""

    folder: Path | None
    name: str

    @property
    def options(self) -> tuple[str, ...]:
        """Command-line options that make the host serve it."""
        return () if self.folder is None else ("--front-end-root", str(self.folder))


PINNED = FrontEnd(None, "pinned")
# Stands for the front ends that are not at hand, so that what was left out is counted.
ABSENT = FrontEnd(Path("absent"), "other")


def front_ends(environ: Mapping[str, str] | None = None) -> list[FrontEnd]:
    """The host's own and those named by COMFYUI_FRONT_ENDS; `ABSENT` if none is named.

    Raises:
        ValueError: if a folder that is named holds no index.html.
    """
    named = (os.environ if environ is None else environ).get("COMFYUI_FRONT_ENDS", "")
    folders = [Path(part).expanduser().absolute() for part in named.split(os.pathsep) if part]
    for folder in folders:
        if not (folder / "index.html").is_file():
            raise ValueError(f"COMFYUI_FRONT_ENDS names {folder}, which holds no index.html")
    return [PINNED, *(FrontEnd(folder, _name(folder)) for folder in folders)] if folders else [PINNED, ABSENT]


def _name(folder: Path) -> str:
    """Its version where the folder lies in an unpacked wheel, else the folder's name."""
    for info in folder.parent.parent.glob("comfyui_frontend_package-*.dist-info"):
        match = re.search(r"-(\d[\w.]*)\.dist-info$", info.name)
        if match is not None:
            return match.group(1)
    return folder.name


def chromium(environ: Mapping[str, str] | None = None) -> str | None:
    """Path of a Chromium, or None."""
    named = (os.environ if environ is None else environ).get("CHROMIUM_PATH")
    if named:
        return named if Path(named).is_file() else None
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def missing() -> str | None:
    """Why browser tests cannot run here; None if they can."""
    if importlib.util.find_spec("playwright") is None:
        return NO_PLAYWRIGHT
    if chromium() is None:
        return NO_CHROMIUM
    return f"browser tests: {NOT_FOUND}" if find_comfyui() is None else None
