"""PooledTail: what `attend` needs of the skipped blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PooledTail:
    """Expansion of every video key block (design.md section 1), contiguous.

    Attributes:
        log_count: (H, g) float32, log of each block's tokens; -inf for heads without a tail.
        k_mean, v_mean: (B, H, g, D) in the dtype of q.
        cov: (B, H, D, D) in the dtype of q, keys x values, or None.
        u, w: (B, H, g, ranks, D) in the dtype of q, or None.
    """

    log_count: Tensor
    k_mean: Tensor
    v_mean: Tensor
    cov: Tensor | None = None
    u: Tensor | None = None
    w: Tensor | None = None

    def to(self, dtype: torch.dtype) -> PooledTail:
        """The same with its products' operands in `dtype`."""

        def cast(x: Tensor) -> Tensor:
            return x.to(dtype).contiguous()

        return PooledTail(
            self.log_count.float().contiguous(),
            cast(self.k_mean),
            cast(self.v_mean),
            None if self.cov is None else cast(self.cov),
            None if self.u is None or self.u.shape[3] == 0 else cast(self.u),
            None if self.w is None or self.w.shape[3] == 0 else cast(self.w),
        )
