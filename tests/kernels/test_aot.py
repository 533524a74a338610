"""The kernels compiled for GPUs that are not here: nothing spills, everything fits, the matrix units are used."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from benchmarks.aot_cases import Planned, representative_cases
from benchmarks.aot_compile import Compiled, compile_case


@pytest.mark.parametrize(
    "planned", representative_cases(), ids=lambda planned: f"{planned.target}: {planned.case.name}"
)
def test_what_ships_compiles_without_spills_and_fits(planned: Planned) -> None:
    result: Compiled = compile_case(planned.case, planned.target)
    assert not result.problems
    assert result.registers > 8


def test_a_configuration_that_does_not_fit_is_seen() -> None:
    from dataclasses import replace

    from benchmarks.aot_cases import attend_case
    from kernels.configs import attend_config

    greedy = replace(attend_config("sm_86", 128, 0), stages=6)
    result = compile_case(attend_case(greedy, 128, tail="none"), "sm_86")
    assert any("shared memory" in problem for problem in result.problems)
