"""The kernels compiled for GPUs that are not here: nothing spills, everything fits, the matrix units are used."""

from __future__ import annotations

import importlib.util
from dataclasses import astuple, replace
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from benchmarks.aot_cases import Planned, attend_case, representative_cases
from benchmarks.aot_compile import Compiled, compile_case
from kernels.configs import ATTEND, attend_config


@pytest.mark.parametrize(
    "planned", representative_cases(), ids=lambda planned: f"{planned.target}: {planned.case.name}"
)
def test_what_ships_compiles_without_spills_and_fits(planned: Planned) -> None:
    result: Compiled = compile_case(planned.case, planned.target)
    assert not result.problems
    assert result.registers > 8


def test_a_configuration_that_does_not_fit_is_seen() -> None:
    greedy = replace(attend_config("sm_86", 128, 0), stages=6)
    result = compile_case(attend_case(greedy, 128, tail="none"), "sm_86")
    assert any("shared memory" in problem for problem in result.problems)


def test_the_documented_configurations_are_those_that_ship() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    documented = [line for line in page.splitlines() if line.startswith(("| sm_", "| gfx"))]
    expected = [(target, dim, *astuple(config)) for (target, dim), config in ATTEND.items()]
    assert documented == ["| " + " | ".join(map(str, row)) + " |" for row in expected]
