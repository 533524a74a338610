"""Whether Triton's interpreter, which stands in for a GPU in a dry run, works with what is installed."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

# The first numpy that refuses to take an array of one element for a number, and the first Triton that knows it.
_STRICT_NUMPY, _FITTING_TRITON = (2, 4), (3, 7)
_NAMES = ("triton", "triton-windows")


def interpreter_lacks() -> str | None:
    """Why nothing can be interpreted here, or None. Imports neither package."""
    numpy, triton = _version("numpy"), next(filter(None, map(_version, _NAMES)), None)
    if triton is None:
        return "Triton is not installed"
    if numpy is not None and _numbers(numpy) >= _STRICT_NUMPY and _numbers(triton) < _FITTING_TRITON:
        return f"the interpreter of Triton {triton} does not work with numpy {numpy}: it takes a numpy before 2.4"
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(said: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", said)[:2]))
