"""energy against the core's block energies: every geometry, dtype, bias and stride, with its own and a given LSE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.method.calibatt.energy import Energy, block_energy
from draftattention.kernels.energy import energy
from tests.kernels.bfloat16 import right_bfloat16_products
from tests.kernels.problems import make_problem


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    right_bfloat16_products(monkeypatch)


CASES: list[dict[str, Any]] = [
    {},
    {"before": 5, "after": 20, "bias": "shared"},
    {"before": 3, "after": 40, "bias": "per_batch", "batch": 2},
    {"scattered": True, "batch": 2, "grid": (2, 4, 7), "after": 3},
    {"interleaved": True, "batch": 2, "heads": 1, "q_block": 16, "k_block": 32},
    {"grid": (1, 2, 5), "q_block": 32, "k_block": 32},
    {"dtype": torch.float16, "dim": 128},
    {"dtype": torch.bfloat16, "after": 3},
    {"q_scale": 60.0},
]


def expected(request: AttendRequest, lse: Tensor | None = None) -> Energy:
    q, k = request.q.double(), request.k.double()
    return block_energy(q, k, request.tables, request.scale, key_bias=request.key_bias, lse=lse)


def check(found: Tensor, truth: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), truth, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(f"{key}={value}" for key, value in case.items()))
def test_energies_and_log_sum_exp_are_those_of_the_core(case: dict[str, Any]) -> None:
    problem = make_problem(**case)
    request = problem.request
    found, lse = energy(request.q, request.k, problem.geometry, request.scale, key_bias=request.key_bias)
    truth = expected(request)
    torch.testing.assert_close(lse.double(), truth.lse, rtol=1e-6, atol=1e-5)
    # Logits of hundreds lose digits before the exponential, in float32 as on a GPU.
    check(found, truth.blocks) if case.get("q_scale", 1.0) == 1.0 else torch.testing.assert_close(
        found.double(), truth.blocks, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: "-".join(f"{key}={value}" for key, value in case.items()))
def test_a_log_sum_exp_of_an_earlier_step_is_used_and_left_alone(case: dict[str, Any]) -> None:
    problem = make_problem(**case)
    first, later, geometry = problem.request, make_problem(**case, seed=1).request, problem.geometry
    lse = energy(first.q, first.k, geometry, first.scale, key_bias=first.key_bias)[1]
    before = lse.clone()
    found, same = energy(later.q, later.k, geometry, later.scale, key_bias=later.key_bias, lse=lse)
    assert same is lse and torch.equal(lse, before)
    check(found, expected(later, lse.double()).blocks)
