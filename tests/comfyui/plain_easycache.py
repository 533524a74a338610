"""EasyCache's published rule (arXiv 2507.02860) on a run that was recorded: what it decides at each step, and answers.

Written from its description, with nothing of the pack's. torch alone: ComfyUI's Python has no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One evaluation of the condition that decides.

    Attributes:
        x: the bare latent.
        v: the velocity that the sampler went on with.
        computed: whether the model was asked for it; otherwise the rule may not look at it.
    """

    x: Tensor
    v: Tensor
    computed: bool


def size(tensor: Tensor) -> float:
    return float(tensor.double().abs().mean())


def decisions(steps: Sequence[Step], tau: float, first: int, end: int = 1) -> tuple[str, float]:
    """One letter per step, C computed or r reused, as far as the recorded run goes the same way; and how near the sum
    came to the threshold at least, as a share of it.

    Args:
        first, end: how many are computed at the start and at the end, whatever the sum.
    """
    said, total, nearest = "", 0.0, float("inf")
    computed: list[Step] = []
    for index, step in enumerate(steps):
        reused = False
        if first <= index < len(steps) - end and len(computed) >= 2:
            before, last = computed[-2:]
            rate = size(last.v - before.v) / size(last.x - before.x)
            total += rate * size(step.x - steps[index - 1].x) / size(last.v)
            nearest = min(nearest, abs(total - tau) / tau)
            reused = total < tau
        said += "r" if reused else "C"
        if not reused:
            if not step.computed:
                break
            computed.append(step)
            total = 0.0
    return said, nearest


def answers_off(steps: Sequence[Step]) -> float:
    """How far answered steps are from x + (v - x) of the last computed one, relative to it, at most."""
    off, last = 0.0, steps[0]
    for step in steps:
        if step.computed:
            last = step
        else:
            expected = step.x + (last.v - last.x)
            off = max(off, float((step.v - expected).norm() / expected.norm()))
    return off
