"""The error probe: a sample of rows that tells the error of the whole call, for every tail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.method.policy import TAILS, Policy, TailName
from draftattention.draftattn_core.method.tail.expand import make_tail
from draftattention.draftattn_core.method.tail.gain import relative_error
from draftattention.draftattn_core.run.probe import DEARER_GAIN, ProbeResult, best_tails, probe_errors, sample_rows
from tests.core.cases import make_request, small_layout, smooth_qkv

LAYOUT = small_layout((4, 7, 9), 3, 4)


def full_errors(request: AttendRequest, name: TailName) -> Tensor:
    """Relative error per head of a whole call under a tail, against dense attention, over the video's rows."""
    tail = make_tail(request.k, request.v, request.tables, name)
    sparse = attend_reference(replace(request, tail=tail))
    dense = attend_reference(replace(request, keep=torch.ones_like(request.keep), tail=None))
    before, video = request.tables.layout.extra_before, request.tables.layout.grid.tokens
    return relative_error(sparse[:, :, before : before + video], dense[:, :, before : before + video])


@pytest.mark.parametrize("bias", [False, True])
def test_with_every_row_the_probe_is_the_full_error(bias: bool) -> None:
    q, k, v = smooth_qkv(LAYOUT, batch=2, heads=3)
    key_bias = torch.randn(2, 7) if bias else None
    if key_bias is not None:
        key_bias[0, 2] = -torch.inf
    request = make_request(2 * q, k, v, LAYOUT, Policy(density=0.1, tail="linear1"), key_bias)
    probe = probe_errors(request, attend_reference(request), rows=10**6)
    assert sorted(probe.rows.tolist()) == list(range(3, 3 + LAYOUT.grid.tokens))
    for name in TAILS:
        # Ranks found while looking for two are not digit for digit those found while looking for one.
        limit = 1e-12 if name in ("none", "mean", "linear0", "linear2") else 1e-3
        torch.testing.assert_close(probe.errors[name], full_errors(request, name), rtol=0, atol=limit)
    torch.testing.assert_close(probe.errors["output"], probe.errors["linear1"], rtol=0, atol=1e-3)


def test_a_sample_is_an_unbiased_estimate_of_the_full_error() -> None:
    q, k, v = smooth_qkv(LAYOUT, heads=3)
    request = make_request(2 * q, k, v, LAYOUT, Policy(density=0.1))
    seeds = range(60)
    for name in ("none", "linear0"):
        squares = torch.stack([probe_errors(request, tails=[name], rows=64, seed=s).errors[name] ** 2 for s in seeds])
        full = full_errors(request, name) ** 2
        spread = squares.std(0) / len(seeds) ** 0.5
        assert ((squares.mean(0) - full).abs() < 3 * spread + 0.01 * full).all()
        # One sample of 64 rows is already within a third of the truth.
        assert (squares.sqrt() / full.sqrt() - 1).abs().max() < 0.34


def test_sampling_is_uniform_over_the_video_and_repeats_with_its_seed() -> None:
    assert torch.equal(sample_rows(1000, 64, 5), sample_rows(1000, 64, 5))
    assert not torch.equal(sample_rows(1000, 64, 5), sample_rows(1000, 64, 6))
    rows = torch.cat([sample_rows(1000, 64, seed) for seed in range(300)])
    assert len(sample_rows(1000, 64, 5).unique()) == 64
    assert sample_rows(10, 64, 0).tolist() == list(range(10))
    tenths = torch.histc(rows.float(), 10, 0, 1000) / len(rows)
    assert (tenths - 0.1).abs().max() < 0.015


def test_the_probe_measures_the_output_it_is_given() -> None:
    q, k, v = smooth_qkv(LAYOUT)
    request = make_request(q, k, v, LAYOUT, Policy(density=1.0))
    out = attend_reference(request)
    assert probe_errors(request, out, tails=()).errors["output"].max() < 1e-14
    torch.testing.assert_close(
        probe_errors(request, 1.5 * out, tails=()).errors["output"], torch.full((1, 2), 0.5).double()
    )
    assert list(probe_errors(request, tails=("mean",)).errors) == ["mean"]


def test_heads_in_groups_are_probed_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = smooth_qkv(LAYOUT, heads=5)
    request = make_request(q, k, v, LAYOUT, Policy(density=0.1))
    whole = probe_errors(request)
    monkeypatch.setattr("draftattention.draftattn_core.geometry.blocks._CHUNK_BYTES", 1)
    for name, errors in probe_errors(request).errors.items():
        torch.testing.assert_close(errors, whole.errors[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_calls_are_probed_in_float32(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in smooth_qkv(LAYOUT))
    probe = probe_errors(make_request(q, k, v, LAYOUT, Policy(density=0.1)))
    exact = probe_errors(make_request(q.double(), k.double(), v.double(), LAYOUT, Policy(density=0.1)))
    assert probe.exact.dtype == torch.float32
    for name in ("none", "mean", "linear0"):
        torch.testing.assert_close(probe.errors[name].double(), exact.errors[name], rtol=2e-3, atol=1e-5)


def test_a_row_with_nothing_kept_and_no_tail_counts_as_all_wrong() -> None:
    q, k, v = smooth_qkv(small_layout((4, 7, 9)))
    request = make_request(q, k, v, small_layout((4, 7, 9)), Policy(density=0.1, tail="mean"))
    probe = probe_errors(replace(request, keep=torch.zeros_like(request.keep)), tails=("none",))
    torch.testing.assert_close(probe.errors["none"], torch.ones(1, 2).double())


def test_each_head_takes_the_tail_with_the_smallest_error() -> None:
    errors = {
        "none": torch.tensor([[0.1, 0.5, 0.3]]),
        "mean": torch.tensor([[0.2, 0.4, 0.3]]),
        "linear1": torch.tensor([[0.3, 0.6, float("nan")]]),
        "output": torch.tensor([[0.0, 0.0, 0.0]]),
    }
    empty = torch.zeros(0)
    # Equal errors go to the cheaper tail; one that is not a number never wins; "output" is no tail.
    assert best_tails(ProbeResult(empty, empty, errors)) == ("none", "mean", "none")


def test_a_dearer_tail_must_be_worth_its_work() -> None:
    errors = {
        "none": torch.tensor([[1.00, 1.00]]),
        "linear0": torch.tensor([[0.50, 0.50]]),
        "linear1": torch.tensor([[0.46, 0.44]]),
        "linear2": torch.tensor([[0.44, 0.41]]),
    }
    result = ProbeResult(torch.zeros(0), torch.zeros(0), errors)
    # Second head: linear1 beats linear0 by 12 %; linear2 beats linear1 by only 7 %.
    assert best_tails(result) == ("linear2", "linear1")
    assert best_tails(result, gain=0.0) == ("linear2", "linear2")
    assert best_tails(result, gain=0.2) == ("linear0", "linear0")


def test_the_batch_decides_together() -> None:
    errors = {"none": torch.tensor([[0.1], [0.9]]), "mean": torch.tensor([[0.4], [0.4]])}
    assert best_tails(ProbeResult(torch.zeros(0), torch.zeros(0), errors)) == ("mean",)


def test_the_choice_is_the_best_tail_of_the_whole_call_or_nearly() -> None:
    layout = small_layout((4, 7, 9))
    q, k, v = smooth_qkv(layout, heads=3, noise=0.05)
    # Smooth video; keys that share nothing inside a block; logits spread far wider than a Taylor expansion can follow.
    k[:, 1:] += torch.tensor([1.0, 30.0]).view(2, 1, 1) * torch.randn(2, layout.tokens, 16, dtype=k.dtype)
    request = make_request(q, k, v, layout, Policy(density=0.2, spread=False))
    names = best_tails(probe_errors(request))
    assert names[0].startswith("linear")
    full = {name: full_errors(request, name) for name in TAILS}
    least = torch.stack(list(full.values())).amin(0)
    for head, name in enumerate(names):
        assert full[name][0, head] <= 1.1 / (1 - DEARER_GAIN) * least[0, head]
