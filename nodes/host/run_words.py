"""A run in one line, as `RunReport.summary` has it, in words that the browser can say in the user's language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ...draftattn_core.run import skips
from ...draftattn_core.run.report import DenseReason, RunReport
from ..words import CLAUSES, LIST, Joined, Words, term

_ERRORS = {"forecast": "run_forecast_error", "spread": "run_gap_error"}


def run_words(report: RunReport) -> Words:
    """The line that tells the story of the run."""
    clauses: list[str] = [report.cancelled] if report.cancelled else []
    told = _skips(report)
    if not report.calls and report.outcomes:
        clauses += told or [Words("run_all_evaluations", count=sum(report.outcomes.values()))]
        return line_of([*clauses, *_speed_up(report)])
    if report.dense_by_plan:
        return line_of([*clauses, *told, Words("run_dense_by_plan"), *_speed_up(report)])
    sparse, executed = report.sparse_density(), report.executed_in_words()
    calls = sum(call.position is not None for call in report.calls)
    clauses += told
    if sparse is None:
        clauses.append(Words("run_sparse", sparse=report.calls_sparse, calls=calls))
    else:
        at = Words("run_sparse_at", sparse=report.calls_sparse, calls=calls, density=f"{sparse:.2f}")
        codes = report.codes_share()
        clauses.append(Words("run_with_codes", sparse=at, share=f"{codes:.0%}") if codes else at)
    dense = {name: n for name, n in report.calls_dense().items() if name != DenseReason.CROSS_ATTENTION.value}
    if dense:
        clauses.append(Words("run_dense", reasons=counted(dense, "reason")))
    if executed is not None:
        clauses.append(Words("run_executed", density=executed))
    return line_of([*clauses, *(_speed_up(report) if report.skipped else _pace(report))])


def line_of(clauses: list[str]) -> Words:
    return Words("run_line", story=Joined(clauses, CLAUSES))


def counted(counts: Mapping[str, int], kind: str) -> Joined:
    """Such as "3 schedule, 1 mask"."""
    return Joined((Words("count_of", count=count, what=term(kind, name)) for name, count in counts.items()), LIST)


def _skips(report: RunReport) -> list[str]:
    """What became of the evaluations; nothing where nobody was to skip any. See `skips.told`."""
    if not report.skipped and not report.decisions:
        return []
    counts, unit = dict(report.outcomes), "evaluations"
    if report.decisions and len(report.decisions) == report.steps:
        counts, unit = dict(Counter(made.outcome.value for made in report.decisions)), "steps"
    every = sum(counts.values())
    if counts.get("computed") == every:
        words = Words(f"run_all_{unit}", count=every)
    else:
        found = {name: count for name, count in sorted(counts.items()) if count}
        words = Words(f"run_{unit}", count=every, counts=counted(found, "outcome"))
    clauses: list[str] = [words]
    error, corrected = skips.mean_error(report.decisions), skips.corrected(report.decisions)
    if error is not None:
        clauses.append(Words(_ERRORS.get(report.skip.rule, "run_rule_error"), error=skips.percent(error)))
    if corrected:
        clauses.append(Words("run_corrected", count=corrected))
    left = skips.uncorrected(report.decisions)
    if left:
        clauses.append(Words("run_uncorrected", reasons=counted(left, "uncorrected")))
    return clauses


def _speed_up(report: RunReport) -> list[str]:
    factor = report.speed_up() if report.skipped else None
    return [Words("run_speed_up", factor=f"{factor:.1f}")] if factor else []


def _pace(report: RunReport) -> list[str]:
    for unit, (sparse, dense) in (("step", report.median_step_seconds()), ("call", report.mean_seconds())):
        if sparse and dense:
            ratio = dense / sparse if sparse <= dense else sparse / dense
            return [Words(f"run_{unit}_{'faster' if sparse <= dense else 'slower'}", ratio=f"{ratio:.1f}")]
    return []
