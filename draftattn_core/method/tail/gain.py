"""The tail gain: a factor on the weight of a head's skipped blocks, fitted to exact attention of a few rows.

A pooled key weighs its block n_j exp(s q.k_j), but by Jensen's inequality the block's true mass is larger: by
exp(s^2 q Cov_j(k) q / 2) if its keys are normally distributed, a factor of 1 to 25 by head on the tiny trained model.
That second-order term explodes where logits are large (design.md section 2), so it is not computed: one factor per head
is chosen to make the error of sampled rows smallest, and stays 1 where none makes it smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Natural logarithms of the factors tried, those nearest to none first.
LOG_GAINS = tuple(sorted((x / 8 for x in range(-8, 33)), key=abs))
# A factor must cut the error by more than this share: less is within what other rows would say.
WORTH = 0.01


@dataclass(frozen=True)
class SplitRows:
    """Attention of some query rows in two parts that share one softmax.

    Attributes:
        kept: (B, H, rows, D) numerator of the kept tokens.
        skipped: (B, H, rows, D) numerator of the tail.
        mass: (B, H, rows, 1) softmax mass of the tail; the kept tokens have the rest of 1.
    """

    kept: Tensor
    skipped: Tensor
    mass: Tensor

    def output(self, log_gain: float | Tensor = 0.0) -> Tensor:
        """(B, H, rows, D) with the tail weighed by exp(log_gain), a number or (H,)."""
        gain = torch.as_tensor(log_gain, dtype=self.mass.dtype, device=self.mass.device).exp().view(-1, 1, 1)
        return (self.kept + gain * self.skipped) / (1 + (gain - 1) * self.mass)


def relative_error(approximate: Tensor, exact: Tensor) -> Tensor:
    """Relative L2 error over rows and head size: (B, H, rows, D) twice -> (B, H) float32 or float64."""
    difference = (approximate.to(exact.dtype) - exact).square().sum((2, 3))
    return (difference / exact.square().sum((2, 3)).clamp_min(1e-30)).sqrt()


def fit_gain(rows: SplitRows, exact: Tensor) -> tuple[Tensor, Tensor]:
    """The log gain of each head under which `rows` come closest to exact (B, H, rows, D), batch elements together.

    Returns:
        Log gains (H,), 0 where none is worth it, and the errors (B, H) with them. The errors are those of the rows
        that chose; one number per head cannot follow 64 rows far, other rows come within a few percent of it.
    """
    errors = torch.stack([relative_error(rows.output(gain), exact) for gain in LOG_GAINS])
    total = errors.mean(1).nan_to_num(nan=torch.inf)
    best = total.argmin(0)
    best = torch.where(total.gather(0, best[None])[0] < (1 - WORTH) * total[0], best, torch.zeros_like(best))
    chosen = errors.gather(0, best.expand(1, errors.shape[1], -1))[0]
    return torch.tensor(LOG_GAINS, dtype=exact.dtype, device=exact.device)[best], chosen
