"""EasyCache (X. Zhou et al., arXiv 2507.02860), as its published code runs it.

A skipped evaluation answers x + (v_c - x_c): the model's output at the last computed evaluation c, moved by as much as
the latent has moved. One branch decides. Its rate |v_c - v_b| / |x_c - x_b|, where b is the evaluation computed before
c and |.| the mean of absolute values, turns each move of the latent into an expected change of the output; these are
summed since c, relative to |v_c|, and the model is called when the sum reaches the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .latents import Parts, beside, kept, mean_change, mean_size
from .together import Together


class EasyCacheState:
    """What one branch remembers: x and v of its last computed evaluation; if it decides, the x before this one too.

    Several parts (video and audio) have a rate and a sum each, and the largest sum counts.
    """

    def __init__(self, offload: bool, together: Together | None = None) -> None:
        self._offload = offload
        self._together = together
        self._computed: tuple[Parts, Parts] | None = None
        self._before: Parts | None = None
        self._changes: tuple[Tensor, Tensor] | None = None
        self._sum: Tensor | None = None

    def tensors(self) -> Iterator[Tensor]:
        for parts in (*(self._computed or ()), self._before or ()):
            yield from parts

    def change(self, x: Parts, forced: bool) -> float | None:
        """The sum of expected changes if this evaluation is skipped too. Waits for one number of the device.

        To be called at every evaluation, for the latent's moves are counted one by one. None if there is no rate yet,
        or if the evaluation is computed whatever it would be (`forced`).
        """
        before, self._before = self._before, kept(x, self._offload)
        if forced or before is None or self._changes is None or self._computed is None:
            return None
        v = self._computed[1]
        means = torch.stack([*self._changes, mean_change(beside(x, v), beside(before, v)), mean_size(v)])
        if self._together is not None:
            # Means of parts of unequal size do not add up; their sums do.
            means = self._together.summed(means * torch.tensor([part.numel() for part in v], device=means.device))
        of_v, of_x, move, size = means
        moved = of_v / of_x * (move / size)
        self._sum = moved if self._sum is None else self._sum + moved
        return float(self._sum.amax().item())

    def predict(self, x: Parts) -> Parts | None:
        if self._computed is None:
            return None
        x_c, v_c = (beside(parts, x) for parts in self._computed)
        return tuple(now.float() + (v.float() - then.float()) for now, v, then in zip(x, v_c, x_c, strict=True))

    def store(self, x: Parts, v: Parts, decides: bool) -> None:
        """Take in a computed evaluation; the sum begins anew."""
        self._sum = None
        here = (kept(x, self._offload), kept(v, self._offload))
        if decides:
            if self._computed is not None:
                x_b, v_b = self._computed
                self._changes = mean_change(here[1], v_b), mean_change(here[0], x_b)
            self._before = here[0]
        self._computed = here
