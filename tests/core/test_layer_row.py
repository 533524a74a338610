"""What the layers of one evaluation did, from its calls."""

from __future__ import annotations

import torch

from draftattention.draftattn_core.run.layer_row import layer_row
from draftattention.draftattn_core.run.report import Call, DenseReason, Position


def call(layer: int | None, density: torch.Tensor | float | None, reason: DenseReason | None = None) -> Call:
    return Call(None if layer is None else Position(0, 0.0, layer), density, reason, 1.0, lambda: 0.0)


def test_a_layer_is_sparse_at_its_mean_density_or_dense_for_its_most_frequent_reason() -> None:
    calls = [
        call(0, None, DenseReason.SCHEDULE),
        call(2, torch.tensor(0.25)),
        call(2, 0.75),
        call(3, 0.5),
        call(3, None, DenseReason.MASK),
        call(4, None, DenseReason.MASK),
        call(4, None, DenseReason.ERROR),
        call(4, None, DenseReason.ERROR),
        call(None, None, DenseReason.CROSS_ATTENTION),
    ]
    assert layer_row(calls) == ("schedule", None, 0.5, 0.5, "error")


def test_an_evaluation_without_calls_has_no_layers() -> None:
    assert layer_row([]) == ()
