"""What became of a run's evaluations, in words."""

from __future__ import annotations

from ...draftattn_core.run import skips
from ...draftattn_core.run.report import RunReport
from ..host.run_words import counted
from ..words import LIST, Joined, Words

_ERRORS = {"forecast": "skips_forecast_error", "spread": "skips_gap_error"}


def skips_text(report: RunReport) -> list[str]:
    """Lines on what was computed and why, the work of the run, and the errors measured; none where nobody was to skip
    anything."""
    if not report.decisions:
        return []
    outcomes = {name: count for name, count in sorted(report.outcomes.items()) if count}
    lines: list[str] = [Words("skips_evaluations", counts=counted(outcomes, "outcome"))]
    reasons = skips.reasons(report.decisions)
    if reasons:
        lines.append(Words("skips_computed", reasons=counted(reasons, "computed")))
    work = report.work()
    lines.append(Words("skips_work_unknown") if work is None else Words("skips_work", work=f"{work:.0%}"))
    lines.append(_errors(report))
    corrected, left = skips.corrected(report.decisions), skips.uncorrected(report.decisions)
    if corrected:
        lines.append(Words("skips_corrected", count=corrected))
    if left:
        lines.append(Words("skips_uncorrected", reasons=counted(left, "uncorrected")))
    return lines


def _errors(report: RunReport) -> str:
    errors = skips.measured_errors(report.decisions)
    if not errors:
        return Words("skips_no_error")
    by_evaluation = Joined((f"{index + 1}: {skips.percent(error)}" for index, error in sorted(errors.items())), LIST)
    return Words(_ERRORS.get(report.skip.rule, "skips_rule_error"), errors=by_evaluation)
