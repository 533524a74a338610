"""What the report says of priors from needs: rank correlations, and budgets from needs beside measured ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.calibration.evaluation import JUDGED_ROWS
from benchmarks.calibration.methods import ONLINE, ORACLE, PROFILE, UNIFORM
from benchmarks.calibration.needs import MASS, NEED_ROWS, Array, rank_correlation
from benchmarks.calibration.plan import Priors
from benchmarks.calibration.prior_runs import prior_of, prior_unit
from benchmarks.calibration.priors import PRIORS, errors_at
from benchmarks.calibration.tables import At, Figure, Row, error_at, json_rows
from benchmarks.calibration.verdicts import of_method, ratios
from benchmarks.quality.raw import Record
from draftattention.draftattn_core.run.figures import bucket_of

Correlations = dict[str, list[list[float]]]
"""By what is compared, for each density or work, one rank correlation for each evaluation."""


def judged(scenario: Priors, records: Sequence[Record]) -> dict[At, Record]:
    """What was measured of the judged runs, by seed and step."""
    known = {str(record["unit"]): record for record in records}
    places = [(seed, step) for seed in scenario.seeds for _, step in scenario.pairs]
    return {at: known[key] for at in places if (key := str(prior_unit(scenario, *at))) in known}


def prior_rows(scenario: Priors, records: Sequence[Record]) -> list[Row]:
    """Rows of budgets from needs, and of the methods measured beside them."""
    rows: dict[str, Row] = {}
    made_from = " ".join(run.key for run in scenario.made_from)
    for at, record in judged(scenario, records).items():
        for key, scores in record["cells"].items():
            method, budget = key.split(" | ")
            rows.setdefault(key, Row(method, float(budget), made_from)).figures[at] = Figure.of(scores)
    return list(rows.values())


def prior_json(scenario: Priors, rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows of calibration.json; methods say where they have no tail."""
    words = ", no tail" if scenario.dropped else ""
    return [{**row, "method": f"{row['method']}{words}"} for row in json_rows(scenario, rows)]


def correlations(scenario: Priors, records: list[Record]) -> Correlations:
    """Rank correlations over all (layer, head) of an evaluation."""
    found: Correlations = {}
    known = judged(scenario, records)
    if not known:
        return {}
    prior = prior_of(scenario, records)
    for (_, step), record in known.items():
        bucket = bucket_of(step / scenario.steps)
        needs, norms, elsewhere = _array(record["needs"]), _array(record["norms"]), prior.needs(bucket)
        curves = np.mean([each.squared for each in prior.tables[bucket]], axis=0)
        for index, density in enumerate(scenario.densities):
            errors = {name: _array(tables[index]) for name, tables in record["errors"].items()}
            solved = _array(record["solved"][index])
            promised = errors_at(prior.densities, curves, np.full(needs.shape, density))
            compared = {
                "need and relative error": (needs, errors["ours"] / norms),
                "need and absolute error": (needs, errors["ours"]),
                "need and relative error, nothing behind the same blocks": (needs, errors["dropped"] / norms),
                "need and absolute error, nothing behind the same blocks": (needs, errors["dropped"]),
                "need and the density that the oracle gives": (needs, solved),
                "need on other seeds and the density that the oracle gives": (elsewhere, solved),
                "need on other seeds and need": (elsewhere, needs),
                "squared norm of the output and absolute error": (norms, errors["ours"]),
                "absolute error on other seeds and absolute error": (promised, errors["ours"]),
                "absolute error on other seeds and the density that the oracle gives": (promised, solved),
            }
            for name, pair in compared.items():
                if scenario.dropped and "nothing behind" in name:
                    continue
                each = found.setdefault(name, [[] for _ in scenario.densities])
                each[index].append(rank_correlation(*pair))
    return found


def _array(table: list[object]) -> Array:
    return np.array(table, dtype=np.float64)


def prior_section(scenario: Priors, rows: Sequence[Row], beside: Sequence[Row], records: list[Record]) -> list[str]:
    """The report's part on priors.

    Args:
        rows: of `prior_rows`; beside: rows of other methods on the same evaluations.
    """
    title = "Priors from needs" + (", no tail behind any method" if scenario.dropped else "")
    if not rows:
        return [f"## {title}", "", "Not measured yet.", ""]
    count = max(len(row.figures) for row in rows)
    lines = [
        f"## {title}, {scenario.grid}, {scenario.steps} steps",
        "",
        f"Need: the share of keys that holds {MASS:.0%} of a head's softmax mass, mean over {NEED_ROWS} rows, as "
        "tables of real models hold it. Spearman's rank correlation over all (layer, head) of an evaluation, mean "
        f"(least to most) of {count} evaluations; errors on {JUDGED_ROWS} rows with all heads at one density.",
        "",
        "| rank correlation of | " + " | ".join(f"{d:g}" for d in scenario.densities) + " |",
        "|---" * (len(scenario.densities) + 1) + "|",
    ]
    for name, each in correlations(scenario, records).items():
        lines.append(f"| {name} | " + " | ".join(_spread(values) for values in each) + " |")
    seeds = ", ".join(str(run.seed) for run in scenario.made_from)
    exponents = ", ".join(f"{power:g}" for power in powers(scenario, records))
    lines += [
        "",
        "Work of one density for all over a method's work, at equal error (above 1: the method wins), by budget; last, "
        "in how many evaluations its error is below that of one density for all at equal work. Needs, exponent and "
        f'curve shape come from seeds {seeds} of the judged model itself (exponent by budget: {exponents}). "Own" '
        "takes the needs of the judged evaluation; measured norms are no part of a table of needs.",
        "",
        "| method | " + " | ".join(f"{work:g}" for work in scenario.works) + " | wins |",
        "|---" * (len(scenario.works) + 2) + "|",
    ]
    everything = [*beside, *rows]
    uniform = of_method(everything, UNIFORM)
    for method in (*PRIORS, ONLINE, PROFILE, ORACLE):
        cells, wins, of = [], 0, 0
        for row in of_method(everything, method):
            if row.budget not in scenario.works:
                continue
            found = next(iter(ratios([row, *uniform], method).values()), None)
            cells.append("-" if found is None else f"{found:.2f}")
            better = beats(row, uniform)
            wins, of = wins + sum(better), of + len(better)
        if cells:
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {wins} of {of} |")
    return [*lines, ""]


def powers(scenario: Priors, records: list[Record]) -> list[float]:
    """The exponent fitted for each work."""
    prior = prior_of(scenario, records)
    tail = next(
        score[-1]
        for record in judged(scenario, records).values()
        for cell in record["cells"].values()
        for score in cell
    )
    return [prior.power(work - tail) for work in scenario.works]


def beats(row: Row, uniform: Sequence[Row]) -> list[bool]:
    """For each evaluation, whether the error is below that of one density for all at the same work."""
    found = []
    for at, figure in row.figures.items():
        even = error_at(uniform, figure.work, [at])
        if even is not None:
            found.append(figure.rel_l2 < even)
    return found


def _spread(values: Sequence[float]) -> str:
    values = [value for value in values if not math.isnan(value)]
    return f"{sum(values) / len(values):+.2f} ({min(values):+.2f} to {max(values):+.2f})" if values else "-"
