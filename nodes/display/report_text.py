"""The report of a run in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from ...draftattn_core.run.report import EXPECTED_REASONS, DenseReason, RunReport
from ...draftattn_core.views.charts import error_text
from ..host.runs import REMEDIES
from .skips_text import skips_text


def report_text(report: RunReport) -> str:
    """Several lines: the summary, densities, what was dense and why, time, tails, notes."""
    if not report.calls and not report.outcomes:
        return (
            "DraftAttention: no run was seen yet. Connect `after` to the sampler's output, "
            "so that this node waits for it."
        )
    lines = [report.summary(), ""]
    lines += skips_text(report)
    lines += _densities(report)
    lines += _dense_calls(report)
    lines += _budgets(report)
    lines += _time(report)
    lines += _tails(report)
    lines += _bits(report)
    if report.notes:
        lines += ["", "Notes:", *(f"  {note}" for note in report.notes)]
    return "\n".join(lines)


def _densities(report: RunReport) -> list[str]:
    lines = []
    sparse, executed, work = report.sparse_density(), report.executed_density(), report.work_density()
    if sparse is not None:
        lines.append(f"Sparse calls computed {sparse:.1%} of their token pairs exactly.")
    if executed is not None:
        lines.append(f"Executed density of the whole run, dense calls and text included: {executed:.1%}.")
    if work is not None and sparse is not None:
        lines.append(f"With the work of the tails that is {work:.1%} of what dense attention would have computed.")
    return lines


def _dense_calls(report: RunReport) -> list[str]:
    """Cross-attention is left out: it was never to be sparse."""
    counts = {name: n for name, n in report.calls_dense().items() if name != DenseReason.CROSS_ATTENTION.value}
    if not counts:
        return []
    lines = ["", "Dense calls:"]
    for name, count in counts.items():
        expected = DenseReason(name) in EXPECTED_REASONS
        lines.append(f"  {count} {name}" + ("" if expected else f": {REMEDIES[name]}"))
    return lines


def _budgets(report: RunReport) -> list[str]:
    """What measured errors made of the schedule's density: before and after, promised and measured."""
    if not report.budgets:
        return []
    lines = ["", "Budgets by measured error (relative L2 of the attention outputs):"]
    for row in report.budgets:
        heads = [density for layer in row.after.values() for density in layer]
        line = (
            f"  from {row.progress:.0%} of the denoising, by {row.source}: density {row.before:.2f} for all became "
            f"{min(heads):.2f} to {max(heads):.2f}, mean {row.mean:.2f}; promised {error_text(row.promised)}"
        )
        if row.uniform is None:
            line += " at most for every layer"
        else:
            line += f" (all alike: {error_text(row.uniform)}), worst layer {error_text(row.worst_layer)}"
        if row.measured is not None and row.measured_worst is not None:
            line += f"; measured {error_text(row.measured)}, worst layer {error_text(row.measured_worst)}"
        lines.append(f"{line}.")
    return lines


def _time(report: RunReport) -> list[str]:
    sparse, dense = report.mean_seconds()
    if not report.calls:
        return ["", f"Run: {report.seconds:.1f} s."]
    lines = ["", f"Run: {report.seconds:.1f} s, of which video self-attention {report.attention_seconds():.1f} s."]
    sparse_step, dense_step = report.median_step_seconds()
    if sparse_step is not None and dense_step is not None:
        lines.append(
            f"The model took {sparse_step:.2f} s for a sparse step and {dense_step:.2f} s for a dense step of its own "
            f"({dense_step / sparse_step:.2f}x)."
        )
    predicted = predicted_saving(report)
    if predicted is not None and report.calls_sparse:
        lines.append(
            f"Predicted saving from the work alone: at most {predicted:.0%} of the attention's time. "
            "Choosing the blocks and making their tails comes on top."
        )
    if sparse is not None and dense is not None:
        calls = sum(call.position is not None for call in report.calls)
        all_dense = dense * calls
        saved = all_dense - report.attention_seconds()
        lines.append(
            f"A sparse call took {1000 * sparse:.1f} ms, a dense one {1000 * dense:.1f} ms "
            f"({dense / sparse:.2f}x); against all calls dense at that pace "
            + (
                f"{saved:.1f} s were saved, {saved / all_dense:.0%} of the attention's time."
                if saved >= 0
                else f"{-saved:.1f} s were lost: raise min_tokens or sparsity."
            )
        )
    elif sparse is not None:
        lines.append(
            f"A sparse call took {1000 * sparse:.1f} ms. No call ran dense, so the gain is not measured: "
            "compare with a run without the node."
        )
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
        f"INT8 scores: {heads.count(8)} of {len(heads)} heads lose so little by them that they may have them; "
        f"{report.codes_share():.0%} of the sparse calls' heads had them.",
        f"Attention error on sampled rows, mean over layers and heads: {error_text(means[0])} in 16 bits, "
        f"{error_text(means[1])} in 8.",
    ]


def _tails(report: RunReport) -> list[str]:
    if not report.tails:
        if not report.calls_sparse:
            return []
        return ["", "The attention error was not measured: it is where skipped blocks have a tail."]
    chosen = Counter(name for names in report.tails.values() for name in names)
    shares = ", ".join(f"{name} {count}" for name, count in chosen.most_common())
    lines = ["", f"Tails the heads of all layers ended up with: {shares}."]
    if not report.tail_errors:
        return lines
    means = {
        name: sum(errors[name] for errors in report.tail_errors.values()) / len(report.tail_errors)
        for name in next(iter(report.tail_errors.values()))
        if all(name in errors for errors in report.tail_errors.values())
    }
    lines.append(f"Attention error measured on this model (relative L2), mean over layers: {_by_error(means)}.")
    lines.append("By layer, with the tails its heads ended up with:")
    for layer, errors in sorted(report.tail_errors.items()):
        heads = Counter(report.tails.get(layer, ())).most_common()
        ended = ", ".join(f"{name} ({count})" for name, count in heads) or "not chosen"
        lines.append(f"  layer {layer}: {ended}{_weights(report.tail_gains.get(layer, ()))}; {_by_error(errors)}")
    return lines


def _weights(gains: Sequence[float]) -> str:
    """What the tail gains of a layer's heads multiply the weight of skipped blocks by."""
    if not any(gains):
        return ""
    low, high = math.exp(min(gains)), math.exp(max(gains))
    return f", skipped blocks weighed x{low:.2g}" + (f" to x{high:.2g}" if f"{high:.2g}" != f"{low:.2g}" else "")


def _by_error(errors: Mapping[str, float]) -> str:
    """Tails and their errors, the smallest first."""
    return ", ".join(f"{name} {error_text(error)}" for name, error in sorted(errors.items(), key=lambda item: item[1]))
