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
    ("head", "none", 224, 10.60992727),
    ("head", "mean", 224, 5.35855293),
    ("head", "linear0", 224, 2.10194532),
    ("head", "linear1", 224, 1.52735089),
    ("head", "linear2", 224, -1.67463497),
    ("row", "none", 228, -10.68584473),
    ("row", "mean", 228, 2.09639707),
    ("row", "linear0", 228, -1.77650634),
    ("row", "linear1", 228, -0.78970513),
    ("row", "linear2", 228, -4.06744534),
    ("top_p", "none", 276, -1.62049722),
    ("top_p", "mean", 278, 0.43905041),
    ("top_p", "linear0", 278, -2.71828434),
    ("top_p", "linear1", 278, -2.446929),
    ("top_p", "linear2", 278, -3.77144028),
    ("draft", "none", 281, -8.07135847),
    ("draft", "mean", 280, 1.35057114),
    ("draft", "linear0", 280, -1.97703232),
    ("draft", "linear1", 280, -2.79803815),
    ("draft", "linear2", 280, -4.83891474),
]


@pytest.mark.parametrize(("method", "tail", "pairs", "total"), FIGURES)
@pytest.mark.parametrize(("backend", "tolerance"), [("reference", 1e-7), ("torch", 1e-6)])
def test_selection_and_output_stay(
    backend: str, tolerance: float, method: Method, tail: TailName, pairs: int, total: float
) -> None:
    wave = torch.arange(3 * 2 * 2 * LAYOUT.tokens * 16, dtype=torch.float64).view(3, 2, 2, LAYOUT.tokens, 16)
    noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    q, k, v = torch.sin(wave * 0.011) + noise
    policy = Policy(density=(0.4, 0.3), method=method, tail=tail, tail_gain=(0.1, 0.0), top_p=0.6)
    bias = torch.tensor([[0.0, -1.0, 0.5, -0.5, -torch.inf]])
    found = attend(q, k, v, LAYOUT, policy, backend=backend, key_bias=bias)
    weights = torch.cos(torch.arange(found.out.numel(), dtype=torch.float64) * 0.7).view(found.out.shape)
    assert int(found.request.keep.sum()) == pairs
    assert float((found.out * weights).sum()) == pytest.approx(total, abs=tolerance)
