"""What is compiled: the cases of `cases.py` and of every module beside it named `cases_*.py`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from tools.aot.compile import Planned


def all_cases() -> list[Planned]:
    """Every kernel in every shipped configuration, for every target. A name occurs once per target."""
    return _collect("all_cases")


def representative_cases() -> list[Planned]:
    """The part of it that the test command compiles."""
    return _collect("representative_cases")


def _collect(function: str) -> list[Planned]:
    plan: list[Planned] = []
    for found in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if found.name == "cases" or found.name.startswith("cases_"):
            # Each defines both functions; one whose kernels the installed Triton cannot even describe returns [].
            plan += getattr(importlib.import_module(f"{__package__}.{found.name}"), function)()
    return plan
