"""A planned run as `spread` should make it, written from its description: the sampler is Euler's, restated here.

torch alone: ComfyUI's Python has no more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

Known = tuple[float, Tensor]


def euler_put_right(
    velocity: Callable[[Tensor, int], Tensor], x: Tensor, sigmas: Sequence[float], planned: Collection[int]
) -> Tensor:
    """The latent at the end of Euler's steps, where planned ones ask the model and first put the latent itself right,
    and those between go on by a line through what is known.

    Args:
        velocity: the model at a latent and a step.
        x: the latent at the first level.
        sigmas: noise levels, one more than steps.
        planned: which steps ask the model, the first among them.
    """
    known: list[Known] = []
    answered: list[tuple[float, float, Tensor]] = []
    for step, (s, after) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if step in planned:
            asked = velocity(x, step)
            here = (s, asked - x)
            off = sum((end - start) * (line(start, here, known[-1]) - guess) for start, end, guess in answered)
            known, answered = [*known, here], []
            x = x + off + asked * (after - s)
        else:
            guess = known[-1][1] if len(known) == 1 else line(s, known[-1], known[-2])
            answered.append((s, after, guess))
            x = x + (x + guess) * (after - s)
    return x


def line(s: float, a: Known, b: Known) -> Tensor:
    return b[1] + (a[1] - b[1]) * (s - b[0]) / (a[0] - b[0])
