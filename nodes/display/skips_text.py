"""What became of a run's evaluations, in words."""

from __future__ import annotations

from ...draftattn_core.run import skips
from ...draftattn_core.run.report import RunReport


def skips_text(report: RunReport) -> list[str]:
    """Lines on what was computed and why, the work of the run, and the errors measured; none where nobody was to skip
    anything."""
    if not report.decisions:
        return []
    lines = [f"Evaluations: {_counts(report.outcomes)}."]
    reasons = skips.reasons(report.decisions)
    if reasons:
        lines.append("Computed because: " + ", ".join(f"{count} {reason}" for reason, count in reasons.items()) + ".")
    work = report.work()
    if work is not None:
        lines.append(
            f"Work of the run: {work:.0%} of a run that computes everything densely (skipped evaluations at zero, "
            "attention at its share of the time)."
        )
    return [*lines, *_errors(report)]


def _errors(report: RunReport) -> list[str]:
    errors = skips.measured_errors(report.decisions)
    if not errors:
        return ["No prediction was compared with a computed evaluation, so its error is not known."]
    name = "Forecast error" if report.skip.rule == "forecast" else "Error of the rule"
    by_evaluation = ", ".join(f"{index + 1}: {skips.percent(error)}" for index, error in sorted(errors.items()))
    return [
        f"{name} (relative L2 of the model's output), measured where an evaluation was computed although a prediction "
        f"was at hand; by evaluation: {by_evaluation}."
    ]


def _counts(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()) if count)
