"""The report of a run in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from ...draftattn_core.run.report import EXPECTED_REASONS, DenseReason, RunReport
from ...draftattn_core.views.charts import error_text
from ..host.run_words import run_words
from ..host.runs import REMEDIES
from ..words import LINES, LIST, Joined, Words, term
from .skips_text import skips_text


def report_text(report: RunReport) -> str:
    """Several lines: the summary, densities, what was dense and why, time, tails, notes."""
    if not report.calls and not report.outcomes:
        return Words("report_no_run")
    lines = [run_words(report), ""]
    lines += skips_text(report)
    lines += _densities(report)
    lines += _dense_calls(report)
    lines += _budgets(report)
    lines += _time(report)
    lines += _tails(report)
    lines += _bits(report)
    if report.notes:
        lines += ["", Words("report_notes"), *(Words("report_item", text=note) for note in report.notes)]
    return Joined(lines, LINES)


def _densities(report: RunReport) -> list[str]:
    lines: list[str] = []
    sparse, executed, work = report.sparse_density(), report.executed_density(), report.work_density()
    if sparse is not None:
        lines.append(Words("report_sparse", share=f"{sparse:.1%}"))
    if executed is not None:
        lines.append(Words("report_executed", share=f"{executed:.1%}"))
    if work is not None and sparse is not None:
        lines.append(Words("report_tail_work", share=f"{work:.1%}"))
    return lines


def _dense_calls(report: RunReport) -> list[str]:
    """Cross-attention is left out: it was never to be sparse."""
    counts = {name: n for name, n in report.calls_dense().items() if name != DenseReason.CROSS_ATTENTION.value}
    if not counts:
        return []
    lines = ["", Words("report_dense")]
    for name, count in counts.items():
        values = {"count": count, "reason": term("reason", name)}
        if DenseReason(name) in EXPECTED_REASONS:
            lines.append(Words("report_dense_expected", **values))
        else:
            lines.append(Words("report_dense_remedy", **values, remedy=REMEDIES[name]))
    return lines


def _budgets(report: RunReport) -> list[str]:
    """What measured errors made of the schedule's density: before and after, promised and measured."""
    if not report.budgets:
        return []
    lines = ["", Words("report_budgets")]
    for row in report.budgets:
        heads = [density for layer in row.after.values() for density in layer]
        became = Words(
            "report_budget",
            progress=f"{row.progress:.0%}",
            source=term("source", row.source),
            before=f"{row.before:.2f}",
            least=f"{min(heads):.2f}",
            most=f"{max(heads):.2f}",
            mean=f"{row.mean:.2f}",
        )
        promised = error_text(row.promised)
        if row.uniform is None:
            clauses = [Words("report_promised_each", error=promised)]
        else:
            alike, worst = error_text(row.uniform), error_text(row.worst_layer)
            clauses = [Words("report_promised", error=promised, alike=alike, worst=worst)]
        if row.measured is not None and row.measured_worst is not None:
            measured, worst = error_text(row.measured), error_text(row.measured_worst)
            clauses.append(Words("report_measured", error=measured, worst=worst))
        # One sentence: a clause after the next, a full stop at its end.
        pieces = "report_budget_measured" if len(clauses) > 1 else "report_budget_promised"
        values = dict(zip(("promised", "measured"), clauses, strict=False))
        lines.append(Words(pieces, became=became, **values))
    return lines


def _time(report: RunReport) -> list[str]:
    sparse, dense = report.mean_seconds()
    if not report.calls:
        return ["", Words("report_time", seconds=f"{report.seconds:.1f}")]
    whole, attention = report.seconds, report.attention_seconds()
    lines = ["", Words("report_times", seconds=f"{whole:.1f}", attention=f"{attention:.1f}")]
    sparse_step, dense_step = report.median_step_seconds()
    if sparse_step is not None and dense_step is not None:
        times = {"sparse": f"{sparse_step:.2f}", "dense": f"{dense_step:.2f}"}
        lines.append(Words("report_steps", **times, ratio=f"{dense_step / sparse_step:.2f}"))
    predicted = predicted_saving(report)
    if predicted is not None and report.calls_sparse:
        lines.append(Words("report_predicted", share=f"{predicted:.0%}"))
    if sparse is not None and dense is not None:
        calls = sum(call.position is not None for call in report.calls)
        all_dense = dense * calls
        saved = all_dense - report.attention_seconds()
        if saved >= 0:
            outcome = Words("report_saved", seconds=f"{saved:.1f}", share=f"{saved / all_dense:.0%}")
        else:
            outcome = Words("report_lost", seconds=f"{-saved:.1f}")
        times = {"sparse": f"{1000 * sparse:.1f}", "dense": f"{1000 * dense:.1f}"}
        lines.append(Words("report_calls", **times, ratio=f"{dense / sparse:.2f}", outcome=outcome))
    elif sparse is not None:
        lines.append(Words("report_no_dense_call", sparse=f"{1000 * sparse:.1f}"))
    return lines


def predicted_saving(report: RunReport) -> float | None:
    """Share of the attention's time that the run would save if time went by work alone; None if no call counted.

    Work is exact pairs and the tails' own (`RunReport.work_density`); finding blocks, means and ranks is not counted,
    so what is measured is less.
    """
    work = report.work_density()
    return None if work is None else 1.0 - work


def _bits(report: RunReport) -> list[str]:
    """What became of INT8 scores where they were asked for."""
    if not report.bits:
        return []
    heads = [bits for layer in report.bits.values() for bits in layer]
    means = [sum(each) / len(report.bits_errors) for each in zip(*report.bits_errors.values(), strict=True)]
    return [
        "",
        Words("report_codes", may=heads.count(8), heads=len(heads), share=f"{report.codes_share():.0%}"),
        Words("report_codes_errors", sixteen=error_text(means[0]), eight=error_text(means[1])),
    ]


def _tails(report: RunReport) -> list[str]:
    if not report.tails:
        if not report.calls_sparse:
            return []
        return ["", Words("report_error_not_measured")]
    chosen = Counter(name for names in report.tails.values() for name in names)
    shares = Joined((f"{name} {count}" for name, count in chosen.most_common()), LIST)
    lines = ["", Words("report_tails", shares=shares)]
    if not report.tail_errors:
        return lines
    means = {
        name: sum(errors[name] for errors in report.tail_errors.values()) / len(report.tail_errors)
        for name in next(iter(report.tail_errors.values()))
        if all(name in errors for errors in report.tail_errors.values())
    }
    lines.append(Words("report_tail_errors", errors=_by_error(means)))
    lines.append(Words("report_by_layer"))
    for layer, errors in sorted(report.tail_errors.items()):
        heads = Counter(report.tails.get(layer, ())).most_common()
        ended = Joined((f"{name} ({count})" for name, count in heads), LIST) or Words("report_not_chosen")
        weighed = Joined([ended, *_weights(report.tail_gains.get(layer, ()))], LIST)
        lines.append(Words("report_layer", layer=layer, tails=weighed, errors=_by_error(errors)))
    return lines


def _weights(gains: Sequence[float]) -> list[str]:
    """What the tail gains of a layer's heads multiply the weight of skipped blocks by."""
    if not any(gains):
        return []
    low, high = f"{math.exp(min(gains)):.2g}", f"{math.exp(max(gains)):.2g}"
    return [Words("report_weighed", factor=low) if low == high else Words("report_weighed_range", low=low, high=high)]


def _by_error(errors: Mapping[str, float]) -> Joined:
    """Tails and their errors, the smallest first."""
    ranked = sorted(errors.items(), key=lambda item: item[1])
    return Joined((f"{name} {error_text(error)}" for name, error in ranked), LIST)
