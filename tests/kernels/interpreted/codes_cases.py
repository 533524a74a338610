"""INT8 scores: codes and scales as the core defines them, and attention by them, against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.method.codes import key_codes, key_shift
from draftattention.draftattn_core.method.tail.expand import make_tail
from draftattention.kernels.attend_pointer import attend_pointer
from draftattention.kernels.configs import AttendConfig, PrepareConfig
from draftattention.kernels.prepare import PreparedKeys, prepare_keys
from draftattention.kernels.types import AttendInputs
from tests.kernels.bfloat16 import right_bfloat16_products
from tests.kernels.problems import (
    LIMITS,
    TINY,
    Problem,
    lists_of,
    make_problem,
    poisoned_output,
    relative_error,
    truth_of,
)

# Weights and sums in float16, added up one by one where a GPU adds 16 products before it rounds.
HALF_LIMIT = 1.5e-3


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    right_bfloat16_products(monkeypatch)


def eight_bits(*, outliers: float = 1.0, k_scale: float = 1.0, v_scale: float = 1.0, **options: Any) -> Problem:
    """A problem whose request asks for 8 bits; some channels of Q and K are `outliers` times as large."""
    problem = make_problem(**options)
    request = problem.request
    q, k, v = (x.clone() if x.is_contiguous() else x for x in (request.q, request.k, request.v))
    k[..., 3::17] *= outliers
    q[..., 5::23] *= outliers
    k *= k_scale
    v *= v_scale
    tail, tables = problem.tail, request.tables
    shift = key_shift(k)
    wide = None if tail is None else make_tail(k, v, tables, options["tail"])
    if wide is not None:
        wide = replace(wide, k_mean=wide.k_mean - shift.unsqueeze(2))
    request = replace(request, q=q, k=k, v=v, tail=wide, bits=(8,) * q.shape[1], shift=shift)
    return replace(problem, request=request, tail=None if wide is None else wide.to(q.dtype))


def prepared(problem: Problem, half_sums: bool = False) -> PreparedKeys:
    request = problem.request
    rest: dict[str, Any] = {"log_weight": None, "ranks": None, "most_ranks": 0, "copy": True, "iterations": 1}
    if request.tail is not None:
        rest["log_weight"] = request.tail.log_weight.float()
    inputs = request.k, request.v, problem.geometry, PrepareConfig()
    return prepare_keys(*inputs, **rest, shift=request.shift, half_sums=half_sums)


def run(problem: Problem, config: AttendConfig = TINY, *, half_sums: bool = False, lse: Tensor | None = None) -> Tensor:
    request, keys = problem.request, prepared(problem, half_sums)
    assert keys.k is not None and keys.v is not None
    rest = problem.geometry, lists_of(request.keep), problem.tail, request.key_bias, request.scale
    out = poisoned_output(request)
    attend_pointer(AttendInputs(request.q, keys.k, keys.v, *rest, True, keys.codes), config, out, lse)
    return out


CASES: list[dict[str, Any]] = [
    {},
    {"after": 20, "bias": "one", "tail": "mean", "batch": 2, "outliers": 30.0},
    {"before": 5, "after": 9, "bias": "per_batch", "batch": 2, "tail": "linear0", "scattered": True},
    {"before": 17, "tail": "linear1", "interleaved": True},
    {"tail": "linear2", "dtype": torch.float16, "before": 9, "outliers": 30.0},
    {"tail": ("none", "linear2"), "after": 1, "dim": 128},
    {"tail": "linear1", "dtype": torch.bfloat16, "before": 7, "after": 20, "bias": "one", "interleaved": True},
    {"tail": "mean", "dtype": torch.bfloat16, "before": 17, "q_scale": 4.0, "outliers": 30.0},
    {"tail": "linear1", "density": 0.0},
    {"tail": "linear1", "density": 1.0, "after": 4},
    {"grid": (1, 3, 5), "k_block": 32, "tail": "linear1"},
    {"dtype": torch.float16, "k_scale": 8000.0, "v_scale": 8000.0, "tail": "mean"},
]


def name(case: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in case.items()) or "plain"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_output_is_the_references_with_the_same_codes(case: dict[str, Any]) -> None:
    problem = eight_bits(**case)
    truth = truth_of(problem.request)
    assert relative_error(run(problem), truth) < LIMITS[problem.request.q.dtype]


@pytest.mark.parametrize("case", CASES, ids=name)
def test_sums_in_float16_are_near(case: dict[str, Any]) -> None:
    problem = eight_bits(**case)
    truth = truth_of(problem.request)
    assert relative_error(run(problem, half_sums=True), truth) < max(HALF_LIMIT, LIMITS[problem.request.q.dtype])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_codes_and_scales_are_those_of_the_core(case: dict[str, Any]) -> None:
    problem = eight_bits(**case)
    request, tables = problem.request, problem.request.tables
    keys = prepared(problem)
    assert keys.k is not None and keys.codes is not None and request.shift is not None
    codes, scale = key_codes(request.k, request.shift, tables)
    assert torch.equal(keys.k.float(), codes[:, :, tables.perm])
    assert torch.equal(keys.codes.k_scale[:, :, tables.k.of_token], scale[:, :, tables.perm, 0])
    assert keys.v is not None and torch.equal(keys.v, request.v[:, :, tables.perm])
