"""Mass needs: the share of keys that holds most of a head's softmax, and how alike two orders of heads are.

Public tables (SVOO's offline profiling) hold this of real models: per step, layer and head the share of key tokens
whose softmax weights, largest first, sum to 95 %, mean over query rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.calibration.evaluation import Evaluation
from draftattention.draftattn_core.run.probe import sample_rows

Array = NDArray[np.float64]

MASS = 0.95
NEED_ROWS = 128


def mass_need(q: Tensor, k: Tensor, scale: float, mass: float = MASS) -> Tensor:
    """Smallest share of the keys that holds `mass` of the softmax, mean over the rows.

    Args:
        q: (..., rows, D) sampled queries; k: (..., L, D) all keys.
        scale: of the logits.

    Returns:
        (...,) float64 in 0..1.
    """
    weights = torch.matmul(q * scale, k.transpose(-1, -2)).softmax(-1)
    held = weights.sort(dim=-1, descending=True).values.cumsum(-1, dtype=torch.float64)
    # Rounding may leave the whole a little below `mass` = 1.
    counts = ((held < mass).sum(-1) + 1).clamp_max(k.shape[-2])
    return counts.double().mean(-1) / k.shape[-2]


def needs_of(evaluation: Evaluation) -> Array:
    """(layers, heads) needs of one evaluation, on `NEED_ROWS` rows that neither curves nor scores are taken from."""
    found = []
    for layer in evaluation.layers:
        call = layer.call
        rows = sample_rows(call.grid.tokens, NEED_ROWS, 5000 + 100 * call.seed + 10 * call.step + call.layer)
        found.append(mass_need(call.q[0, :, rows], call.k[0], layer.scale))
    return np.asarray(torch.stack(found).numpy(), dtype=np.float64)


def rank_correlation(a: Array | Sequence[float], b: Array | Sequence[float]) -> float:
    """Spearman's rank correlation of two tables of the same shape, ties at their mean rank; nan if one is constant."""
    x, y = (_ranks(np.asarray(each, dtype=np.float64).ravel()) for each in (a, b))
    if x.shape != y.shape:
        raise ValueError(f"ranks are compared of tables of one shape, got {x.size} and {y.size} values")
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], dtype=np.float64)
