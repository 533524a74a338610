"""INT8 scores: codes and scales as the core defines them, and attention by them, against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends.call_kind import CallKind, Variant
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.triton import head_groups
from draftattention.draftattn_core.backends.triton.pointer import POINTER
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.codes import fp8_values, key_codes, key_shift
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.method.tail.expand import make_tail
from draftattention.kernels import attend_pointer as attend_module
from draftattention.kernels.attend_pointer import attend_pointer
from draftattention.kernels.configs import AttendConfig, PrepareConfig
from draftattention.kernels.prepare import PreparedKeys, prepare_keys
from draftattention.kernels.types import AttendInputs
from tests.kernels.bfloat16 import right_bfloat16_products
from tests.kernels.float8 import right_float8
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
# Weights rounded to the three bits of FP8, beside the maximum of the moment.
FP8_LIMIT = 3e-2


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    right_bfloat16_products(monkeypatch)
    right_float8(monkeypatch)


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


def prepared(problem: Problem, half_sums: bool = False, fp8: bool = False) -> PreparedKeys:
    request = problem.request
    rest: dict[str, Any] = {"log_weight": None, "ranks": None, "most_ranks": 0, "copy": True, "iterations": 1}
    if request.tail is not None:
        rest["log_weight"] = request.tail.log_weight.float()
    inputs = request.k, request.v, problem.geometry, PrepareConfig()
    return prepare_keys(*inputs, **rest, shift=request.shift, half_sums=half_sums or fp8, fp8=fp8)


def run(problem: Problem, keys: PreparedKeys, config: AttendConfig = TINY, lse: Tensor | None = None) -> Tensor:
    request = problem.request
    assert keys.k is not None and keys.v is not None
    rest = (
        problem.geometry,
        lists_of(request.keep, problem.tail is not None),
        problem.tail,
        request.key_bias,
        request.scale,
    )
    out = poisoned_output(request)
    attend_pointer(AttendInputs(request.q, keys.k, keys.v, *rest, True, keys.codes), config, out, lse)
    return out


CASES: list[dict[str, Any]] = [
    {"grid": (2, 4, 7), "heads": 1},
    {"grid": (2, 4, 7), "after": 20, "bias": "one", "tail": "mean", "batch": 2, "heads": 1, "outliers": 30.0},
    {"grid": (2, 4, 7), "before": 5, "after": 9, "bias": "per_batch", "batch": 2, "tail": "linear0", "scattered": True},
    {"grid": (2, 4, 7), "tail": "linear2", "dtype": torch.float16, "before": 9, "outliers": 30.0, "heads": 1},
    {"grid": (2, 4, 7), "tail": ("none", "linear2"), "after": 1, "dim": 128},
    {
        "grid": (2, 4, 7),
        "tail": "linear1",
        "dtype": torch.bfloat16,
        "before": 7,
        "after": 20,
        "bias": "one",
        "interleaved": True,
    },
    {"tail": "linear1", "density": 0.0, "heads": 1},
    {"tail": "linear1", "density": 1.0, "after": 4, "heads": 1},
    {"grid": (1, 3, 5), "k_block": 32, "tail": "linear1"},
    {"dtype": torch.float16, "k_scale": 8000.0, "v_scale": 8000.0, "tail": "mean", "heads": 1},
    {"dtype": torch.bfloat16, "k_scale": 1e-9, "v_scale": 1e-9, "tail": "mean", "heads": 1},
]


@pytest.mark.parametrize("half_sums", [False, True], ids=["sums in float32", "sums in float16"])
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(f"{key}={value}" for key, value in case.items()) or "plain"
)
def test_codes_are_the_cores_and_the_output_is_the_references_with_them(case: dict[str, Any], half_sums: bool) -> None:
    problem = eight_bits(**case)
    request, tables = problem.request, problem.request.tables
    keys = prepared(problem, half_sums)
    assert keys.k is not None and keys.v is not None and keys.codes is not None and request.shift is not None
    codes, scale = key_codes(request.k, request.shift, tables)
    assert torch.equal(keys.k.float(), codes[:, :, tables.perm])
    assert torch.equal(keys.codes.k_scale[:, :, tables.k.of_token], scale[:, :, tables.perm, 0])
    check_values(keys, request.v[:, :, tables.perm], tables.k.of_token)
    limit = LIMITS[request.q.dtype]
    assert relative_error(run(problem, keys), truth_of(request)) < (max(limit, HALF_LIMIT) if half_sums else limit)


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[5], CASES[9]], ids=str)
def test_values_in_fp8_are_the_cores_and_the_output_is_near_the_references_with_them(case: dict[str, Any]) -> None:
    problem = eight_bits(**case)
    request = replace(problem.request, fp8_values=True)
    keys = prepared(problem, fp8=True)
    assert keys.v is not None and keys.codes is not None and keys.codes.v_exponent is not None
    assert keys.v.dtype == torch.float8_e4m3fn and keys.v.float().abs().max() <= 8.0
    unit = keys.codes.v_exponent.exp2()[:, :, request.tables.k.of_token, None]
    assert torch.equal(keys.v.float() * unit, fp8_values(request.v, request.tables)[:, :, request.tables.perm])
    assert relative_error(run(problem, keys), truth_of(request)) < FP8_LIMIT


def check_values(keys: PreparedKeys, expected: Tensor, block: Tensor) -> None:
    """The copied V: exact, but for what float16 has no bits for."""
    assert keys.v is not None and keys.codes is not None
    exponent = keys.codes.v_exponent
    if exponent is None:
        assert torch.equal(keys.v, expected)
        return
    assert keys.v.dtype == torch.float16 and keys.v.abs().max() < 256.0
    found = keys.v.double() * exponent.double().exp2()[:, :, block, None]
    lost = 2.0**-11 if expected.dtype == torch.float32 else 0.0
    assert torch.allclose(found, expected.double(), rtol=lost, atol=float(exponent.max().exp2()) * 2.0**-25)


def test_means_and_draft_are_those_of_keys_as_they_come_and_only_the_pooled_ones_are_moved() -> None:
    problem = eight_bits(grid=(2, 4, 7), heads=2, after=3, tail="linear1")
    request = problem.request
    rest: dict[str, Any] = {"ranks": torch.ones(2, dtype=torch.int32), "most_ranks": 1, "copy": True, "iterations": 2}
    rest["log_weight"] = torch.zeros(2, problem.geometry.k_video)
    inputs = request.k, request.v, problem.geometry, PrepareConfig()
    plain, moved = (prepare_keys(*inputs, **rest, shift=shift) for shift in (None, request.shift))
    assert torch.equal(moved.k_mean, plain.k_mean) and torch.equal(moved.spread, plain.spread)
    assert plain.tail is not None and moved.tail is not None and request.shift is not None
    assert torch.equal(moved.tail.k_mean, plain.tail.k_mean - request.shift.unsqueeze(2))
    for name in ("v_mean", "cov", "u", "w"):
        assert torch.equal(getattr(moved.tail, name), getattr(plain.tail, name)), name


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 16), (32, 32)])
def test_tiles_smaller_than_blocks_give_the_same(block_m: int, block_n: int) -> None:
    problem = eight_bits(tail="linear1", after=20, bias="one", q_block=32, k_block=32, heads=1)
    config = AttendConfig(block_m, block_n, 16, 4, 3, 2)
    assert relative_error(run(problem, prepared(problem), config), truth_of(problem.request)) < LIMITS[torch.float32]


def test_the_blocks_and_tiles_that_are_shipped() -> None:
    problem = eight_bits(
        grid=(3, 8, 13), after=30, q_block=128, k_block=64, dim=128, heads=1, tail="linear1", dtype=torch.bfloat16
    )
    config = AttendConfig(128, 64, 16, 8, 3, 2)
    out = run(problem, prepared(problem, half_sums=True), config)
    assert relative_error(out, truth_of(problem.request)) < LIMITS[torch.bfloat16]


def test_queries_and_blocks_of_zeros_have_scores_of_zero() -> None:
    problem = eight_bits(after=20, bias="one", heads=1, tail="mean")
    request = problem.request
    request.q[:, :, 3:40] = 0.0
    request.k[:, :, request.tables.perm[16:48]] = request.shift
    assert relative_error(run(problem, prepared(problem)), truth_of(request)) < LIMITS[torch.float32]


def test_a_row_without_keys_is_zero() -> None:
    problem = eight_bits(density=0.0, heads=1)
    out = run(problem, prepared(problem, half_sums=True))
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("sums", ["float32", "float16", "fp8"])
@pytest.mark.parametrize(("of", "value"), [("v", torch.nan), ("v", torch.inf), ("k", torch.nan), ("k", torch.inf)])
def test_what_is_not_finite_reaches_exactly_the_rows_that_attend_to_it(of: str, value: float, sums: str) -> None:
    problem, options = eight_bits(heads=1, grid=(2, 4, 7)), {"half_sums": sums == "float16", "fp8": sums == "fp8"}
    request, tables = problem.request, problem.request.tables
    clean = run(problem, prepared(problem, **options))
    (request.v if of == "v" else request.k)[0, 0, 40, 3] = value
    out = run(problem, prepared(problem, **options))
    attends = request.keep[0, 0, tables.q.of_token[tables.inverse], tables.k.of_token[tables.inverse[40]]]
    reached = torch.zeros_like(out[0, 0], dtype=torch.bool)
    reached[:, 3 if of == "v" else slice(None)] = attends[:, None] if of == "k" else attends
    assert torch.equal(out[0, 0].isfinite(), ~reached)
    assert torch.equal(out[0, 0][~reached], clean[0, 0][~reached])


def test_a_query_that_is_not_finite_stays_in_its_row() -> None:
    problem = eight_bits(heads=1, tail="linear1", density=0.5, grid=(2, 4, 7))
    problem.request.q[0, 0, 7, 0] = torch.nan
    out = run(problem, prepared(problem))
    rows = torch.arange(out.shape[2])
    assert out[0, 0, rows != 7].isfinite().all() and out[0, 0, 7].isnan().all()


def test_sums_of_the_largest_values_stay_within_float16() -> None:
    """Equal weights of 1 on a whole tile of values at the end of float16's range."""
    problem = eight_bits(heads=1, q_block=64, k_block=64, dtype=torch.float16, density=1.0, grid=(4, 4, 8))
    problem.request.q.zero_()
    problem.request.v.fill_(65504.0)
    out = run(problem, prepared(problem, half_sums=True), AttendConfig(64, 64, 16, 4, 2, 1))
    assert torch.equal(out, torch.full_like(out, 65504.0))


def test_so_do_those_of_fp8_in_tiles_that_would_be_too_wide() -> None:
    """128 keys of 8 with weights of 2^6 would be 2^16."""
    problem = eight_bits(heads=1, q_block=64, k_block=128, density=1.0, grid=(4, 4, 8))
    problem.request.q.zero_()
    problem.request.v.fill_(7.9 * 2.0**10)
    out = run(problem, prepared(problem, fp8=True), AttendConfig(64, 128, 16, 4, 2, 1))
    assert torch.equal(out, torch.full_like(out, 8.0 * 2.0**10))


def test_there_is_no_lse_of_shifted_keys_and_nothing_to_gather() -> None:
    problem = eight_bits(heads=1)
    lse = torch.empty(1, 1, problem.geometry.tokens)
    with pytest.raises(ValueError, match="no LSE"):
        run(problem, prepared(problem), lse=lse)


LAYOUT = Layout(TokenGrid(2, 4, 6), 0, 5, 32, 16)


def test_a_whole_call_with_some_heads_in_8_bits_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_groups, "LEAST_RUN", 1)
    q, k, v = torch.randn(3, 1, 2, LAYOUT.tokens, 64)
    k += 3.0 * torch.randn(1, 2, 1, 64)
    policy = Policy(density=0.4, tail=("linear1", "mean"), bits=(16, 8))
    found = attend(q, k, v, LAYOUT, policy, backend="triton")
    expected = attend(q, k, v, LAYOUT, policy, backend="reference")
    assert found.request.bits == (16, 8) and found.codes() == 0.5
    assert torch.equal(found.request.keep, expected.request.keep)
    assert found.request.shift is not None
    assert torch.equal(found.request.shift, key_shift(k) * torch.tensor([0.0, 1.0])[:, None])
    truth = attend_reference(found.request)
    assert (found.out - truth).norm() < 2e-6 * truth.norm()
    # Without ranks its tail is the core's.
    assert (found.out - expected.out)[:, 1].norm() < 2e-6 * truth.norm()


KIND = CallKind(torch.device("cpu"), torch.float32, 64, 128, 64)
CHECKED = Variant("head", "linear1", True, 8)


@pytest.mark.parametrize("fp8", [False, True])
def test_the_one_time_check_passes(fp8: bool) -> None:
    assert POINTER.check(KIND, replace(CHECKED, fp8=fp8)) is None


def test_the_one_time_check_sees_scales_of_other_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attend_module.attend_pointer

    def wrong(inputs: AttendInputs, config: AttendConfig, out: Tensor) -> None:
        assert inputs.codes is not None
        codes = replace(inputs.codes, k_scale=inputs.codes.k_scale * 1.5)
        right(replace(inputs, codes=codes), config, out)

    monkeypatch.setattr(attend_module, "attend_pointer", wrong)
    found = str(POINTER.check(KIND, Variant("row", "none", bits=8)))
    assert "off by" in found and found.endswith("on cpu (method row, tail none, no key bias, 8-bit scores)")
