"""Warm-up: compile and check a run's kernels before its first block is computed, and say so meanwhile.

Triton compiles a kernel when it is first launched, and keeps the binary on disk: seconds in the first run on a machine,
milliseconds in later ones. Small calls launch every variant that the run may need; that other sizes need no others is
what tests/kernels/test_one_binary.py is about.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from ...method.policy import TailName
from ..call_kind import Problem, Variant
from .trust import Trust

Report = Callable[[str], None]


def warm_up(
    trust: Trust,
    kernel: tuple[object, ...],
    problem: Problem,
    tails: Sequence[TailName],
    check: Callable[[Problem, Variant], str | None],
    report: Report,
) -> None:
    """Check every variant of `problem`, and of it with each of `tails`, that this process has no verdict on.

    Stops where a variant of the problem itself is refused, since other kernels serve the run then.

    Args:
        trust: where the verdicts are kept.
        kernel: what they are kept under, beside the variant.
        check: computes a small call of a variant; what is wrong with it, or None.
        report: told in words what is being compiled.
    """
    others = [problem.with_tail(tail).variants[0] for tail in tails]
    wanted = list(dict.fromkeys([*problem.variants, *others]))
    missing = [variant for variant in wanted if not trust.knows((*kernel, variant))]
    for variant in wanted:
        if variant in missing:
            number = missing.index(variant) + 1
            what = f"{trust.name}, {number} of {len(missing)} (tail {variant.tail})"
            report(f"DraftAttention compiles and checks {what}; once per machine")
        reason = trust.reason_against((*kernel, variant), functools.partial(check, problem, variant))
        if reason is not None and variant in problem.variants:
            return
