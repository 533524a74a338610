"""The warp-specialised attend against the reference. The interpreter runs its kernels as any others: what they
compute is proven here, not how the compiler divides it among warps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftattention.kernels.attend_hopper import attend_hopper, key_slots
from draftattention.kernels.configs import HopperConfig, hopper_config
from draftattention.kernels.types import AttendInputs
from tests.kernels.bfloat16 import right_bfloat16_products
from tests.kernels.far import move_programs_far, reserved
from tests.kernels.problems import LIMITS, Problem, lists_of, make_problem, poisoned_output, relative_error, truth_of

SMALL = HopperConfig(stages=2, block_g=16, tail_stages=2)


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    right_bfloat16_products(monkeypatch)


def has_edges(problem: Problem) -> bool:
    """Whether some key block is short or holds extra tokens."""
    geometry = problem.geometry
    return geometry.video_tokens % geometry.k_block > 0 or geometry.tokens > geometry.video_tokens


def run(
    problem: Problem, config: HopperConfig = SMALL, *, lse: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    request = problem.request
    out = poisoned_output(request) if out is None else out
    k, v = (x.index_select(2, request.tables.perm) for x in (request.k, request.v))
    rest = problem.geometry, lists_of(request.keep), problem.tail, request.key_bias, request.scale, True
    warps = attend_hopper(AttendInputs(request.q, k, v, *rest), config, out, lse)
    assert warps == (None,) * (1 + (problem.tail is not None) + has_edges(problem))
    return out


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"grid": (2, 4, 8), "density": 0.7},
        {"after": 20, "bias": "one", "tail": "mean", "batch": 2, "heads": 1},
        {"before": 5, "after": 9, "bias": "per_batch", "batch": 2, "tail": "linear0", "scattered": True},
        {"before": 17, "tail": "linear1", "interleaved": True},
        {"tail": "linear2", "dtype": torch.float16, "before": 9},
        {"tail": ("none", "linear2"), "after": 1, "dim": 128},
        {"tail": "linear1", "dtype": torch.float16, "before": 3, "after": 20, "bias": "one", "dim": 128},
        {"tail": "linear1", "dtype": torch.bfloat16, "before": 7, "after": 20, "bias": "one", "interleaved": True},
        {"tail": "mean", "dtype": torch.bfloat16, "before": 17, "q_scale": 4.0},
        {"tail": "linear1", "density": 0.0, "heads": 1},
        {"tail": "linear1", "density": 1.0, "after": 4, "heads": 1},
        {"grid": (1, 3, 5), "k_block": 32, "tail": "linear1"},
    ],
    ids=lambda case: "-".join(f"{key}={value}" for key, value in case.items()) or "plain",
)
def test_output_is_the_references(case: dict[str, Any]) -> None:
    problem = make_problem(**case)
    assert relative_error(run(problem), truth_of(problem.request)) < LIMITS[problem.request.q.dtype]


@pytest.mark.parametrize("tail", [None, "mean"])
@pytest.mark.parametrize("whole", range(6))
def test_lists_of_every_length_are_walked_whole(whole: int, tail: str | None) -> None:
    """In pairs: no entry is left out and none counts twice, whatever else a list ends with."""
    problem = make_problem(grid=(2, 6, 9), after=18, bias="one", heads=1, tail=tail)
    request, geometry = problem.request, problem.geometry
    assert geometry.video_tokens // geometry.k_block == 6 and geometry.k_total == 9
    for edge in (False, True):
        keep = torch.zeros_like(request.keep)
        keep[..., [5, 0, 3, 1, 4][:whole]] = True
        keep[..., 6:] = edge
        keep[:, :, geometry.q_video :] = True
        part = replace(problem, request=replace(request, keep=keep))
        truth = truth_of(part.request).nan_to_num()
        assert (run(part) - truth).norm() <= LIMITS[torch.float32] * truth.norm()


def test_extra_blocks_that_a_list_leaves_out_are_left_out() -> None:
    problem = make_problem(grid=(2, 6, 9), after=40, heads=1, density=0.5)
    problem.request.keep[..., 6:] = torch.rand(problem.request.keep[..., 6:].shape) < 0.5
    assert relative_error(run(problem), truth_of(problem.request)) < LIMITS[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_largest_error_is_at_most_twice_that_of_plain_torch(dtype: torch.dtype) -> None:
    """The tail's rounding on its way from one kernel to the other included."""
    problem = make_problem(dtype=dtype, q_scale=2.0, tail="mean", heads=1)
    request = problem.request
    truth = truth_of(request)
    naive = (request.q * request.scale @ request.k.transpose(-1, -2)).softmax(-1) @ request.v
    exact = (request.q.double() * request.scale @ request.k.double().transpose(-1, -2)).softmax(-1) @ request.v.double()
    ulp = torch.finfo(dtype).eps * float(truth.abs().max())
    assert (run(problem) - truth).abs().max() <= 2 * (naive - exact).abs().max() + ulp


@pytest.mark.parametrize("k_block", [64, 128])
def test_the_blocks_and_tiles_that_are_shipped(k_block: int) -> None:
    problem = make_problem(
        grid=(3, 8, 13), after=30, q_block=128, k_block=k_block, dim=128, heads=1, tail="linear1", dtype=torch.float16
    )
    out = run(problem, hopper_config(128, k_block, 1))
    assert relative_error(out, truth_of(problem.request)) < LIMITS[torch.float16]


def test_pooled_tiles_find_their_bits_of_the_packed_map() -> None:
    problem = make_problem(grid=(4, 15, 20), after=3, q_block=128, k_block=16, heads=1, density=0.1, tail="linear1")
    assert problem.geometry.k_video == 75
    out = run(problem, HopperConfig(stages=2, block_g=64, tail_stages=2))
    assert relative_error(out, truth_of(problem.request)) < LIMITS[torch.float32]


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
    truth = truth_of(request)
    out = run(problem)
    assert out.isfinite().all()
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
def test_a_tail_that_is_not_finite_reaches_the_video_rows_of_its_head(of: str) -> None:
    """Those that do not skip the block attend to the token that spoiled it."""
    problem = make_problem(grid=(2, 4, 5), after=3, tail="linear1", density=0.5)
    clean = run(problem)
    getattr(problem.tail, of)[0, 0, 1, ..., 3] = torch.nan
    out = run(problem)
    video = problem.geometry.video_tokens
    reached = torch.zeros_like(out, dtype=torch.bool)
    reached[0, 0, :video, slice(None) if of in ("k_mean", "u") else 3] = True
    assert torch.equal(out.isnan(), reached)
    assert torch.equal(out[~reached], clean[~reached])


def test_a_query_that_is_not_finite_stays_in_its_row() -> None:
    problem = make_problem(heads=1, tail="linear1", density=0.5)
    problem.request.q[0, 0, 7, 0] = torch.nan
    out = run(problem)
    rows = torch.arange(out.shape[2])
    assert out[0, 0, rows != 7].isfinite().all()
    assert out[0, 0, 7].isnan().all()


def test_the_output_may_lie_anywhere() -> None:
    problem = make_problem(grid=(1, 5, 7), tail="linear1", after=9, heads=1)
    expected = run(problem)
    wide = torch.full((*expected.shape[:3], 3 * expected.shape[3]), torch.nan)
    out = wide[..., expected.shape[3] : 2 * expected.shape[3]]
    assert torch.equal(run(problem, out=out), expected)
    assert wide[..., : expected.shape[3]].isnan().all() and wide[..., 2 * expected.shape[3] :].isnan().all()


def test_far_heads_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 2^31 elements: descriptors are made in the kernel, of a pointer moved to the head."""
    problem = make_problem(grid=(2, 4, 5), after=5, batch=2, heads=1, bias="per_batch", tail="linear2")
    found = []
    for _ in range(2):
        lse = torch.full((2, 1, problem.geometry.tokens), torch.nan)
        found.append((run(problem, lse=lse), lse))
        move_programs_far(monkeypatch)
    (out, lse), (far_out, far_lse) = found
    assert out.isfinite().all()
    assert torch.equal(far_out, out) and torch.equal(far_lse, lse)


def test_rows_that_lie_far_apart_are_written() -> None:
    problem = make_problem(grid=(1, 5, 7), after=5, heads=1, tail="mean", dtype=torch.float16)
    out = run(problem, out=reserved(poisoned_output(problem.request), 64))
    assert relative_error(out, truth_of(problem.request)) < LIMITS[torch.float16]


def test_keys_that_are_not_in_block_order_memory_are_refused() -> None:
    request, geometry = (problem := make_problem(heads=2, interleaved=True)).request, problem.geometry
    lists = lists_of(request.keep)
    with pytest.raises(ValueError, match="contiguous"):
        inputs = AttendInputs(request.q, request.k, request.v, geometry, lists, None, None, request.scale, True)
        attend_hopper(inputs, SMALL, poisoned_output(request))


def test_slots_hold_zeros_biases_and_minus_infinity_behind_short_blocks() -> None:
    problem = make_problem(grid=(1, 4, 5), after=18, bias="one", k_block=16)
    bias = problem.request.key_bias
    assert bias is not None
    slots = key_slots(problem.geometry, bias)
    assert slots.shape == (1, 4 * 16)
    assert torch.equal(slots[0, :20], torch.zeros(20))
    assert torch.equal(slots[0, 20:32], torch.full((12,), -torch.inf))
    assert torch.allclose(slots[0, 32:50], bias[0] / torch.log(torch.tensor(2.0)))
    assert torch.equal(slots[0, 50:], torch.full((14,), -torch.inf))
    assert torch.equal(key_slots(make_problem(grid=(2, 4, 8), after=16).geometry, None), torch.zeros(1, 80))
