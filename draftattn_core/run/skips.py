"""What the step cache's decisions came to in a run: counts, reasons, measured errors; in words and as plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .evaluation import Outcome
from .step_cache.log import Decision
from .step_cache.settings import Rule

# What the measured errors are those of. A planned evaluation tests the forecast that reaches farthest: over all that
# was skipped before it.
ERRORS: Mapping[Rule, str] = {"forecast": "forecast error", "spread": "forecast error across a whole gap"}


def reasons(decisions: Iterable[Decision], outcome: Outcome = Outcome.COMPUTED) -> dict[str, int]:
    """How often each reason led to that outcome, most frequent first."""
    return dict(Counter(str(made.reason) for made in decisions if made.outcome is outcome).most_common())


def measured_errors(decisions: Iterable[Decision]) -> dict[int, float]:
    """By index of the evaluation, the relative L2 error of the prediction that would have stood in for it; the worst of
    its context windows. Only computed evaluations have one."""
    worst: dict[int, float] = {}
    for made in decisions:
        if made.error is not None and math.isfinite(made.error):
            worst[made.index] = max(made.error, worst.get(made.index, 0.0))
    return worst


def mean_error(decisions: Iterable[Decision]) -> float | None:
    """Mean of the errors measured; None if none was."""
    errors = [made.error for made in decisions if made.error is not None and math.isfinite(made.error)]
    return sum(errors) / len(errors) if errors else None


def corrected(decisions: Iterable[Decision]) -> int:
    """How many evaluations made good what the forecasts before them missed; every context window counts."""
    return sum(made.corrected for made in decisions)


def uncorrected(decisions: Iterable[Decision]) -> dict[str, int]:
    """How often each reason kept an evaluation from making good what the forecasts before it missed."""
    return dict(Counter(str(made.uncorrected) for made in decisions if made.uncorrected is not None).most_common())


def told(outcomes: Mapping[str, int], decisions: Sequence[Decision], steps: int | None, rule: Rule) -> str:
    """Such as "20 steps: 9 computed, 11 forecast; forecast error 0.8%"; under `spread` also how often it was corrected
    or, and why, not.

    Args:
        outcomes: number of calls by outcome; conditions that are called one by one count one by one.
        decisions: one per evaluation and window. They are counted instead where each is a step of the sampler.
        steps: of the sampler, None if unknown.
        rule: of the step cache.
    """
    counts, unit = dict(outcomes), "evaluations"
    if decisions and len(decisions) == steps:
        counts, unit = dict(Counter(made.outcome.value for made in decisions)), "steps"
    every = sum(counts.values())
    if counts.get("computed") == every:
        line = f"{every} {unit}, all computed"
    else:
        line = f"{every} {unit}: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count)
    error, made_good = mean_error(decisions), corrected(decisions)
    if error is not None:
        line += f"; {ERRORS.get(rule, 'error of the rule')} {percent(error)}"
    if made_good:
        line += f"; corrections: {made_good}"
    left = uncorrected(decisions)
    if left:
        line += "; not corrected: " + ", ".join(f"{count} {reason}" for reason, count in left.items())
    return line


def percent(share: float) -> str:
    """One digit after the point, or one that counts where those would be zero."""
    return f"{share:.1%}" if share >= 0.0005 or share == 0.0 else f"{100 * share:.1g}%"


def plain(decisions: Iterable[Decision]) -> list[dict[str, Any]]:
    """The decisions as plain values for JSON; experts and windows by number, in order of appearance."""
    experts: dict[Any, int] = {}
    windows: dict[Any, int] = {}
    return [
        {
            "evaluation": made.index,
            "expert": experts.setdefault(made.expert, len(experts)),
            "window": windows.setdefault(made.window, len(windows)),
            "level": made.level,
            "progress": made.progress,
            "outcome": made.outcome.value,
            "reason": str(made.reason),
            "estimate": _finite(made.estimate),
            "error": _finite(made.error),
            "corrected": made.corrected,
            "uncorrected": None if made.uncorrected is None else str(made.uncorrected),
        }
        for made in decisions
    ]


def _finite(value: float | None) -> float | None:
    """None for what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None
