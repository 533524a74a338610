"""The step caches in ComfyUI's core (0.33.0: nodes EasyCache and LazyCache), as they decide for one condition.

Both stop calling the model while a sum of expected changes stays under a threshold, as EasyCache (arXiv 2507.02860)
does, and answer x + (y_c - x_c), where c is the last computed evaluation. They differ from the paper, and from the
`easycache` of this pack, in four things:

- changes are read off every eighth row and column; the size |y| they are relative to is that of all of y;
- a skipped evaluation does not move the latent that the next one is compared with: the distance from c is added anew at
  every evaluation, so that the sum grows with the square of the skips in a row;
- the rate is |y - y_c| / |x - x_c| between computed evaluations, and outside a window of the noise level nothing is
  skipped; after its end nothing is remembered either;
- y is the model's prediction for EasyCache, which begins to compare inside its window only, and the denoised latent
  for LazyCache, which compares from the first evaluation on.

Written from the behaviour of those nodes; `tests/comfyui/check_core_caches.py` holds it against them. Needs torch only.
"""

from __future__ import annotations

from torch import Tensor

EVERY = 8


class CoreRule:
    """One sampling run of one condition.

    Args:
        threshold: of the sum, relative to the size of y.
        start, end: noise levels of the window, noisiest first; its end lies outside.
        lazy: LazyCache's way instead of EasyCache's.
    """

    def __init__(self, threshold: float, start: float, end: float, *, lazy: bool) -> None:
        self.threshold, self.start, self.end, self.lazy = threshold, start, end, lazy
        self._compares = lazy
        self._sum: Tensor | float = 0.0
        self._moved: Tensor | None = None
        self._rate: Tensor | None = None
        self._difference: Tensor | None = None
        # x, y and the size of y at the last computed evaluation that was compared.
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def answer(self, x: Tensor, level: float) -> Tensor | None:
        """What stands in for y (B, C, T, H, W) at this latent; None to have it computed."""
        self._moved = None
        if not self.end < level <= self.start:
            return None
        self._compares = True
        if self._last is None:
            return None
        before, _, size = self._last
        self._moved = (_sampled(x) - before).abs().mean()
        if self._rate is None:
            return None
        self._sum = self._sum + self._rate * self._moved / size
        if self._sum < self.threshold and self._difference is not None:
            return x + self._difference
        self._sum = 0.0
        return None

    def store(self, x: Tensor, y: Tensor, level: float) -> None:
        """Take in a computed evaluation; `answer` was asked about it before."""
        if level <= self.end:
            return
        self._difference = y - x
        if not self._compares:
            return
        if self._last is not None and self._moved is not None:
            self._rate = (_sampled(y) - self._last[1]).abs().mean() / self._moved
        self._last = _sampled(x).clone(), _sampled(y).clone(), y.abs().mean()


def _sampled(latent: Tensor) -> Tensor:
    return latent[..., ::EVERY, ::EVERY]
