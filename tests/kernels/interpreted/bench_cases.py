"""The kernel bench's measuring half with a stopped clock: its rows, their arithmetic and its errors, on a tiny call."""

from __future__ import annotations

import pytest
import torch

from benchmarks import kernels_gpu
from benchmarks.kernels_plan import Shape, sampled_error, structured
from draftattn_core.backends.reference import attend_reference

SHAPE = Shape("tiny", (3, 8, 9), 0, 1, 64)


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_gpu, "median_seconds", lambda run, repeats: (run(), 2.0)[1])
    monkeypatch.setattr(kernels_gpu, "extra_mib", lambda run: 7.0)
    # FlexAttention would compile for half a minute here.
    monkeypatch.setattr(kernels_gpu, "attend_flex", attend_reference)


def test_our_rows() -> None:
    qkv = structured(SHAPE, torch.device("cpu"), torch.float32)
    rows = kernels_gpu.our_rows(SHAPE, qkv, 0.5, 4.0, 1)
    whole = rows[0]
    assert whole.executed is not None and 0.4 < whole.executed < 0.8
    assert whole.of_ideal == 2.0 / (whole.executed * 4.0)
    assert whole.tflops == 4 * whole.executed * 216**2 * 64 / 2.0 / 1e12
    errors = {row.what: row.error for row in rows if row.error is not None}
    assert errors["whole call, linear1"] < 0.5 * errors["error with tail none"]


def test_peer_rows_name_who_was_skipped() -> None:
    qkv = structured(SHAPE, torch.device("cpu"), torch.float32)
    rows = kernels_gpu.peer_rows(SHAPE, qkv, 0.5, 4.0, 1)
    assert rows[0].seconds == 2.0 and rows[0].note == ""
    assert all(row.note.startswith("skipped") for row in rows[1:])


def test_sampled_error_of_dense_attention_is_zero() -> None:
    q, k, v = structured(SHAPE, torch.device("cpu"), torch.float32)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert sampled_error(q, k, v, out) < 1e-6
    assert sampled_error(q, k, v, 1.1 * out) == pytest.approx(0.1, rel=1e-3)
