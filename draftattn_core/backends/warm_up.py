"""Warm-up: compile a run's kernels before its first block is computed, and say so meanwhile.

Triton compiles a kernel when it is first launched, and keeps the binary on disk: seconds in the first run on a machine,
milliseconds in later ones. Small calls launch every variant that the run may need; that other sizes need no others is
what tests/kernels/test_one_binary.py is about.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from ..grid import TokenGrid
from ..layout import Layout, build_tables
from ..policy import TAILS, Policy, TailName
from .request import BackendFailure
from .trust import Trust

Report = Callable[[str], None]


@dataclass(frozen=True)
class Kernels:
    """What decides which binaries a call takes, beside those of `Problem`; hashable.

    Attributes:
        method: of the selection.
        tail: the dearest tail of a head.
        biased: whether extra tokens have a key bias.
    """

    method: str
    tail: TailName
    biased: bool


def kernels_of(policy: Policy, tails: Iterable[TailName], biased: bool) -> Iterator[tuple[Kernels, Policy]]:
    """The kernels of a run whose heads may take any of `tails`, each with a policy that launches them.

    Heads with different tails share the binaries of the dearest of them.
    """
    asked = policy.tail if isinstance(policy.tail, tuple) else (policy.tail,)
    for tail in sorted({*asked, *tails}, key=TAILS.index):
        yield Kernels(policy.method, tail, biased), replace(policy, density=0.4, tail=tail, tail_gain=0.0)


def warm_up(
    trust: Trust,
    kernel: tuple[object, ...],
    wanted: Iterable[tuple[Kernels, Policy]],
    compute: Callable[[Kernels, Policy], None],
    report: Report,
) -> None:
    """Compute a small call for each of `wanted` that this process has not compiled yet.

    Args:
        trust: where it is noted.
        kernel: key of the kernels' own verdict.
        compute: the small call; it withdraws kernels that do not compile, and raises BackendFailure then.
        report: told in words what is being compiled.
    """
    missing = [(kind, policy) for kind, policy in wanted if not trust.knows((*kernel, kind))]
    for number, (kind, policy) in enumerate(missing, 1):
        report(f"DraftAttention compiles its kernels, {number} of {len(missing)} (tail {kind.tail}); once per machine")
        try:
            trust.reason_against((*kernel, kind), functools.partial(compute, kind, policy))
        except BackendFailure:
            # Withdrawn by then, with a message.
            return


def small_layout(q_block: int, k_block: int) -> Layout:
    """Short blocks, extra tokens, more than one block of each kind."""
    return Layout(TokenGrid(3, 9, 13), 7, 30, q_block, k_block)


def small_call(
    compute: Callable[..., object],
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    blocks: tuple[int, int],
    kind: Kernels,
    policy: Policy,
) -> None:
    """Run `compute` (see `Backend.run`) on zeros."""
    layout = small_layout(*blocks)
    q = torch.zeros(1, 2, layout.tokens, head_dim, dtype=dtype, device=device)
    bias = torch.zeros(1, layout.extra, device=device) if kind.biased else None
    compute(q, q, q, build_tables(layout, device), policy, bias, float(head_dim) ** -0.5)
