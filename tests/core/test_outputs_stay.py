"""Outputs of fixed inputs stay what they were: a change that is meant to change nothing is held to this.

The figures were made before the core was cut into rooms. They are those of the reference in float64, so no machine's
rounding shows in them; a change that means to change them says why and makes them anew.
"""

from __future__ import annotations

import pytest
import torch

from draftattention import Layout, Policy, TokenGrid, attend
from draftattention.draftattn_core.method.policy import Method, TailName

LAYOUT = Layout(TokenGrid(3, 5, 7), 2, 3, 16, 8, (2, 2, 4))
# Method, tail, kept block pairs, and the output summed up under a wave.
FIGURES: list[tuple[Method, TailName, int, float]] = [
    ("head", "none", 264, -15.07119597),
    ("head", "mean", 264, -12.44787398),
    ("head", "linear0", 264, -16.5885549),
    ("head", "linear1", 264, -16.18282635),
    ("head", "linear2", 264, -17.24452816),
    ("row", "none", 264, -15.07119597),
    ("row", "mean", 264, -12.44787398),
    ("row", "linear0", 264, -16.5885549),
    ("row", "linear1", 264, -16.18282635),
    ("row", "linear2", 264, -17.24452816),
    ("top_p", "none", 368, -2.49037688),
    ("top_p", "mean", 371, -2.9807552),
    ("top_p", "linear0", 371, -4.77214132),
    ("top_p", "linear1", 371, -5.04381565),
    ("top_p", "linear2", 371, -6.12936567),
    ("draft", "none", 326, -5.47370116),
    ("draft", "mean", 324, -1.47652236),
    ("draft", "linear0", 324, -3.94969219),
    ("draft", "linear1", 324, -3.58286881),
    ("draft", "linear2", 324, -5.35077078),
]


@pytest.mark.parametrize(("method", "tail", "pairs", "total"), FIGURES)
@pytest.mark.parametrize(("backend", "tolerance"), [("reference", 1e-7), ("torch", 1e-6)])
def test_selection_and_output_stay(
    backend: str, tolerance: float, method: Method, tail: TailName, pairs: int, total: float
) -> None:
    wave = torch.arange(3 * 2 * 2 * LAYOUT.tokens * 16, dtype=torch.float64).view(3, 2, 2, LAYOUT.tokens, 16)
    noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    q, k, v = torch.sin(wave * 0.011) + noise
    policy = Policy(
        density=(0.3, 0.2), method=method, tail=tail, tail_gain=(0.1, 0.0), top_p=0.6, keep_first_frame=True
    )
    bias = torch.tensor([[0.0, -1.0, 0.5, -0.5, -torch.inf]])
    found = attend(q, k, v, LAYOUT, policy, backend=backend, key_bias=bias)
    weights = torch.cos(torch.arange(found.out.numel(), dtype=torch.float64) * 0.7).view(found.out.shape)
    assert int(found.request.keep.sum()) == pairs
    assert float((found.out * weights).sum()) == pytest.approx(total, abs=tolerance)
