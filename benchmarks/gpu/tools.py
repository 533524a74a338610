"""NVIDIA's tools around a child of the bench, where they are: a memory checker, and a profiler of one launch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

# Where the toolkit lies that is not on the path.
_TOOLKIT = Path("/usr/local/cuda/bin")
_ACCESS_DENIED = "ERR_NVGPUCTRPERM"


def find_tool(name: str, which: Callable[[str], str | None] = shutil.which) -> str | None:
    """The path of a tool, or None."""
    found = which(name) or which(str(_TOOLKIT / name))
    return found


def memory_checker() -> tuple[str, ...] | None:
    """The words in front of a command that is to be checked; it then ends with exit code 9 where memory is misused."""
    found = find_tool("compute-sanitizer")
    # With torch's cache every allocation lies inside a larger one, and what runs over its end is not seen.
    bare = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1")
    return None if found is None else (*bare, found, "--tool", "memcheck", "--error-exitcode", "9")


def profiler(kernel: str) -> tuple[str, ...] | None:
    """The words in front of a command of which one launch of a kernel is to be profiled; what it finds is printed."""
    found = find_tool("ncu")
    if found is None:
        return None
    sections = ("SpeedOfLight", "Occupancy", "WarpStateStats", "LaunchStats")
    words = [word for section in sections for word in ("--section", section)]
    return (found, "--kernel-name", f"regex:{kernel}", "--launch-skip", "2", "--launch-count", "1", *words)


def profiled(said: tuple[str, ...]) -> str:
    """What became of a profile, from the last lines its command printed."""
    if any(_ACCESS_DENIED in line for line in said):
        return "not permitted to read counters here"
    figures = [line.strip() for line in said if "%" in line or "Registers" in line]
    return f"{len(figures)} figures in the results" if figures else "no figures"
