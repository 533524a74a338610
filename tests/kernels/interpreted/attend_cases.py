"""attend against the reference: every tail, extra tokens on either side, key bias, odd grids, strides, edge values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.kernels.attend_pointer import attend_pointer
from draftattention.kernels.configs import AttendConfig
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


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    right_bfloat16_products(monkeypatch)


def run(problem: Problem, config: AttendConfig = TINY, *, in_order: bool = False, lse: Tensor | None = None) -> Tensor:
    request = problem.request
    k, v = request.k, request.v
    if in_order:
        k, v = (x[:, :, request.tables.perm] for x in (k, v))
    rest = (
        problem.geometry,
        lists_of(request.keep, problem.tail is not None),
        problem.tail,
        request.key_bias,
        request.scale,
    )
    out = poisoned_output(request)
    attend_pointer(AttendInputs(request.q, k, v, *rest, in_order), config, out, lse)
    return out


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"after": 20, "bias": "one", "tail": "mean", "batch": 2},
        {"before": 5, "after": 9, "bias": "per_batch", "batch": 2, "tail": "linear0", "scattered": True},
        {"before": 17, "tail": "linear1", "interleaved": True},
        {"tail": "linear2", "dtype": torch.float16, "before": 9},
        {"tail": ("none", "linear2"), "after": 1, "dim": 128},
        {"tail": "linear1", "dtype": torch.float16, "before": 3, "after": 20, "bias": "one", "dim": 128},
        {"tail": "linear1", "dtype": torch.bfloat16, "before": 7, "after": 20, "bias": "one", "interleaved": True},
        {"tail": "mean", "dtype": torch.bfloat16, "before": 17, "q_scale": 4.0},
        {"tail": "linear1", "density": 0.0},
        {"tail": "linear1", "density": 1.0, "after": 4},
        {"grid": (1, 3, 5), "k_block": 32, "tail": "linear1"},
    ],
    ids=lambda case: "-".join(f"{key}={value}" for key, value in case.items()) or "plain",
)
def test_output_is_the_references(case: dict[str, Any]) -> None:
    problem = make_problem(**case)
    assert relative_error(run(problem), truth_of(problem.request)) < LIMITS[problem.request.q.dtype]


@pytest.mark.parametrize(("density", "tail"), [(1.0, None), (0.4, "linear1")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_largest_error_is_at_most_twice_that_of_plain_torch(
    dtype: torch.dtype, density: float, tail: str | None
) -> None:
    problem = make_problem(dtype=dtype, density=density, tail=tail, q_scale=2.0, heads=1)
    request = problem.request
    truth = truth_of(request)
    naive = attend_reference(request, dtype)
    ulp = torch.finfo(dtype).eps * float(truth.abs().max())
    assert (run(problem) - truth).abs().max() <= 2 * (naive - truth).abs().max() + ulp


def test_keys_in_block_order_give_the_same_bits() -> None:
    problem = make_problem(tail="linear1", after=20, bias="one")
    assert torch.equal(run(problem), run(problem, in_order=True))


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 16), (32, 16), (16, 32)])
def test_tiles_smaller_than_blocks_give_the_same(block_m: int, block_n: int) -> None:
    problem = make_problem(tail="linear1", after=20, bias="one", q_block=32, k_block=32, heads=1)
    config = AttendConfig(block_m, block_n, 16, 4, 3, 2)
    assert relative_error(run(problem, config), truth_of(problem.request)) < LIMITS[torch.float32]


@pytest.mark.parametrize("block_g", [16, 32, 64])
def test_pooled_tiles_of_every_width_hold_what_the_list_leaves(block_g: int) -> None:
    """75 blocks less what a row keeps: the last tile is short."""
    problem = make_problem(grid=(4, 15, 20), after=3, q_block=128, k_block=16, heads=1, density=0.1, tail="linear1")
    assert problem.geometry.k_video == 75
    config = AttendConfig(128, 16, block_g, 4, 2, 1)
    assert relative_error(run(problem, config), truth_of(problem.request)) < LIMITS[torch.float32]


@pytest.mark.parametrize("scale", [0.0, -0.125, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    problem = make_problem(heads=1)
    with pytest.raises(ValueError, match="positive scale"):
        run(replace(problem, request=replace(problem.request, scale=scale)))


def test_keys_in_block_order_have_to_be_contiguous() -> None:
    problem = make_problem(heads=1)
    spread = torch.zeros(*problem.request.k.shape[:3], 2 * problem.request.k.shape[3])[..., ::2]
    with pytest.raises(ValueError, match="contiguous"):
        request = problem.request
        rest = problem.geometry, lists_of(request.keep), None, None, request.scale, True
        attend_pointer(AttendInputs(request.q, spread, request.v, *rest), TINY, poisoned_output(request))


def test_the_blocks_and_tiles_that_are_shipped() -> None:
    problem = make_problem(
        grid=(3, 8, 13), after=30, q_block=128, k_block=64, dim=128, heads=1, tail="linear1", dtype=torch.float16
    )
    config = AttendConfig(128, 64, 32, 8, 3, 2)
    assert relative_error(run(problem, config, in_order=True), truth_of(problem.request)) < LIMITS[torch.float16]


def test_a_row_without_keys_is_zero_and_its_lse_minus_infinity() -> None:
    problem = make_problem(density=0.0, heads=1)
    lse = torch.full((1, 1, problem.geometry.tokens), torch.nan)
    out = run(problem, lse=lse)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))


def test_lse_is_the_log_of_the_denominator_tail_included() -> None:
    problem = make_problem(grid=(2, 4, 5), tail="mean", after=5, bias="per_batch", batch=2)
    request, tail = problem.request, problem.request.tail
    assert tail is not None and request.key_bias is not None
    lse = torch.full((2, 2, problem.geometry.tokens), torch.nan)
    run(problem, lse=lse)
    tables = request.tables
    q_block, k_block = tables.q.of_token[tables.inverse], tables.k.of_token[tables.inverse]
    logits = request.scale * request.q.double() @ request.k.double().transpose(-1, -2)
    logits[..., -5:] += request.key_bias[:, None, None].double()
    logits = logits.masked_fill(~request.keep[:, :, q_block][..., k_block], -torch.inf)
    pooled = request.scale * request.q.double() @ tail.k_mean.double().transpose(-1, -2) + tail.log_weight[:, None]
    pooled = pooled.masked_fill(request.keep[:, :, q_block, : tables.k.video], -torch.inf)
    expected = torch.cat([logits, pooled], -1).logsumexp(-1)
    assert torch.allclose(lse.double(), expected, rtol=0, atol=3e-6)


def test_a_block_hidden_by_its_bias_is_no_key() -> None:
    problem = make_problem(after=20, bias="one", tail=None, density=0.3, heads=1)
    request = problem.request
    assert request.key_bias is not None
    request.key_bias.fill_(-torch.inf)
    # Rows that are left with nothing but hidden keys are undefined in the reference and 0 here.
    truth = truth_of(request)
    out = run(problem)
    assert torch.equal(out.isfinite(), torch.ones_like(out, dtype=torch.bool))
    assert relative_error(out.where(truth.isfinite(), 0), truth.nan_to_num()) < LIMITS[torch.float32]


@pytest.mark.parametrize(("of", "value"), [("v", torch.nan), ("v", torch.inf), ("k", torch.nan)])
def test_what_is_not_finite_reaches_exactly_the_rows_that_attend_to_it(of: str, value: float) -> None:
    problem = make_problem(heads=1)
    request = problem.request
    tables = request.tables
    (request.v if of == "v" else request.k)[0, 0, 40, 3] = value
    out = run(problem)
    block = tables.k.of_token[tables.inverse[40]]
    attends = request.keep[0, 0, tables.q.of_token[tables.inverse], block]
    reached = torch.zeros_like(out[0, 0], dtype=torch.bool)
    # A key spoils the weights of all values, a value its own place.
    reached[:, 3 if of == "v" else slice(None)] = attends[:, None] if of == "k" else attends
    assert torch.equal(out[0, 0].isfinite(), ~reached)


@pytest.mark.parametrize("of", ["k_mean", "v_mean", "u", "w", "cov"])
def test_a_tail_that_is_not_finite_reaches_exactly_the_rows_that_skip_its_block(of: str) -> None:
    """The others attend to the token that spoiled it. An average matrix reaches all video rows of its head."""
    problem = make_problem(grid=(2, 4, 5), after=3, tail="linear1", density=0.5)
    clean = run(problem)
    getattr(problem.tail, of)[0, 0, 1, ..., 3] = torch.nan
    out = run(problem)
    tables = problem.request.tables
    blocks = tables.q.of_token[tables.inverse]
    skips = blocks < tables.q.video if of == "cov" else ~problem.request.keep[0, 0, blocks, 1]
    reached = torch.zeros_like(out, dtype=torch.bool)
    reached[0, 0, :, slice(None) if of in ("k_mean", "u") else 3] = skips[:, None] if of in ("k_mean", "u") else skips
    assert torch.equal(out.isnan(), reached)
    assert torch.equal(out[~reached], clean[~reached])


def test_a_query_that_is_not_finite_stays_in_its_row() -> None:
    problem = make_problem(heads=1, tail="linear1", density=0.5)
    problem.request.q[0, 0, 7, 0] = torch.nan
    out = run(problem)
    rows = torch.arange(out.shape[2])
    assert out[0, 0, rows != 7].isfinite().all()
    assert out[0, 0, 7].isnan().all()
