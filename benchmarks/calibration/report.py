"""The bench's files: calibration.json, calibration.md and a plot for each grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.calibration.evaluation import JUDGED_ROWS
from benchmarks.calibration.methods import ONLINE, ORACLE, ORACLE_ROWS, PROFILE, UNIFORM
from benchmarks.calibration.plan import Captured, PortableMasks, Priors, Scenario, Sensitivity, Whole
from benchmarks.calibration.plot import plot
from benchmarks.calibration.portable_report import memory_section, portable_json, portable_section
from benchmarks.calibration.prior_report import prior_json, prior_rows, prior_section
from benchmarks.calibration.savings import Saving, captured_savings, savings_section, times, whole_savings
from benchmarks.calibration.sensitivity import unit as sensitivity_unit
from benchmarks.calibration.tables import (
    Row,
    WholeRow,
    captured_rows,
    error_at,
    json_rows,
    json_whole_rows,
    whole_rows,
)
from benchmarks.calibration.verdicts import all_verdicts, common, excess, gain_db, of_method
from benchmarks.calibration.whole import DENSE
from benchmarks.quality.plan import BIG_GRIDS
from benchmarks.quality.raw import Record, effort
from benchmarks.verdict import Verdict

SCHEMA = 1


def write(scenarios: Sequence[Scenario], records: list[Record], share_of: dict[str, float], out: Path) -> list[Path]:
    """Write all files of what there is; returns their paths.

    Args:
        share_of: attention's share of a dense evaluation, by grid.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, object]] = []
    sections: list[str] = []
    verdicts: list[tuple[str, Verdict]] = []
    paths, saved, timed = [], list[Saving](), list[str]()
    for group in _by_path([scenario for scenario in scenarios if isinstance(scenario, Captured)]):
        rows = captured_rows(group, records)
        if not rows:
            continue
        name = f"{group[0].grid}-{group[0].steps}-steps"
        picture = out / f"error-{name}.png"
        most = _evaluations(rows)
        counted, fewer = f"{most} evaluations", sorted({len(row.figures) for row in rows} - {most})
        if fewer:
            words = " or ".join(map(str, fewer))
            counted += f", of published methods {words} (scaled by the error of uniform there)"
        plot(rows, f"{group[0].grid}, {group[0].steps} steps, {counted}", picture)
        paths.append(picture)
        found += json_rows(group[0], rows)
        sections += _captured_section(group[0], rows, picture.name)
        verdicts += [(str(group[0].grid), verdict) for verdict in all_verdicts(rows)]
        saved += captured_savings(group[0], rows)
    for scenario in scenarios:
        if isinstance(scenario, Whole):
            whole = whole_rows(scenario, records, share_of[str(scenario.grid)])
            found += json_whole_rows(scenario, whole)
            sections += _whole_section(scenario, whole)
            saved += whole_savings(scenario, whole)
            timed += times(scenario, whole)
            real = scenario.grid in BIG_GRIDS
            names = () if scenario.timed else (ONLINE, PROFILE)
            verdicts += [(str(scenario.grid), gain_db(whole, name, real=real)) for name in names]
        elif isinstance(scenario, Priors):
            rows = prior_rows(scenario, records)
            found += prior_json(scenario, rows)
            sections += prior_section(scenario, rows, _beside(scenario, scenarios, records), records)
        elif isinstance(scenario, Sensitivity):
            sections += _sensitivity_section(scenario, records)
        elif isinstance(scenario, PortableMasks):
            found += portable_json(scenario, records)
            sections += portable_section(scenario, records)
    if any(isinstance(scenario, PortableMasks) for scenario in scenarios):
        sections += memory_section()
    table, page = out / "calibration.json", out / "calibration.md"
    table.write_text(json.dumps({"schema": SCHEMA, "rows": found}, indent=1) + "\n", encoding="utf-8")
    page.write_text(
        "\n".join([*_head(records, verdicts), *savings_section(saved, timed), *sections]) + "\n", encoding="utf-8"
    )
    return [table, page, *paths]


def _by_path(scenarios: Sequence[Captured]) -> list[list[Captured]]:
    """Scenarios that judge the same evaluations, together."""
    groups: dict[tuple[str, int], list[Captured]] = {}
    for scenario in scenarios:
        groups.setdefault((str(scenario.grid), scenario.steps), []).append(scenario)
    return list(groups.values())


def _beside(scenario: Priors, scenarios: Sequence[Scenario], records: list[Record]) -> list[Row]:
    """Rows of other methods, with their tail, on the evaluations of `scenario`."""
    if scenario.dropped:
        return []
    path = scenario.grid, scenario.steps, scenario.pairs
    same = [s for s in scenarios if isinstance(s, Captured) and (s.grid, s.steps, s.pairs) == path]
    return captured_rows(same, records) if same else []


def _evaluations(rows: Sequence[Row]) -> int:
    return max(len(row.figures) for row in rows)


def _head(records: list[Record], verdicts: Sequence[tuple[str, Verdict]]) -> list[str]:
    lines = [
        "# Budgets, profiles and masks at equal work",
        "",
        "Written by `python run.py bench calibration`. [docs/calibration.md](../../../docs/calibration.md) says how to "
        "calibrate and reads these tables.",
        "",
        "- Tiny trained video DiT of the demo (5 layers, 4 heads of 64), float32 on CPU, no guidance, Euler, shift 5, "
        "prompts in turn by seed.",
        f"- Captured: all 5 layers of an evaluation of a dense run, {JUDGED_ROWS} query rows of each; the error is "
        "relative L2 of the attention outputs of all layers and heads together, mean over evaluations.",
        "- Work: exact pairs plus the tails' keys as a share of dense attention, mean over layers; probes, searches of "
        "AdaSpa and the full step of Re-ttention are not counted.",
        f"- Online budgets and the gains of uniform rows are measured (64 rows) on an earlier evaluation of the same "
        f"run; the oracle on the judged evaluation itself ({ORACLE_ROWS} other rows). Profiles are made as "
        "Calibrate makes them, of runs of other seeds.",
        "- In calibration.json `held_out` is false where budgets were made from the very evaluation that judges them.",
        f"- Time spent: {effort(records)}.",
        "",
        "## Targets",
        "",
        "| grid | target | | figure |",
        "|---|---|---|---|",
    ]
    lines += [f"| {grid} | {v.target} | {v.word} | {v.found} |" for grid, v in verdicts]
    return [*lines, ""]


def _captured_section(scenario: Captured, rows: Sequence[Row], picture: str) -> list[str]:
    lines = [
        f"## Captured evaluations, {scenario.grid} ({scenario.grid.tokens:,} tokens), {scenario.steps} steps",
        "",
        f"Steps {', '.join(str(step) for _, step in scenario.pairs)} (from 0) of seeds "
        f"{', '.join(map(str, scenario.seeds))} as far as measured.",
        "",
        f"![Error against work]({picture})",
        "",
        "Rows of fewer evaluations are scaled in the picture by what uniform has on all evaluations over what it has "
        "on those; the table has them as they are.",
        "",
        "The last column is the error beside that of one density for all heads at the same work on the same "
        "evaluations.",
        "",
        "| method | budget | work | error | worst 5 % of rows | worst layer | evaluations | beside uniform |",
        "|---|---|---|---|---|---|---|---|",
    ]
    uniform = of_method(rows, UNIFORM)
    for row in rows:
        at = common(row, *uniform) if uniform else []
        same = error_at(uniform, row.mean("work", at), at) if at else None
        beside = "-" if same is None or row.method == UNIFORM else f"{row.mean('rel_l2', at) / same:.2f}"
        worst = max(figure.worst_layer for figure in row.figures.values())
        lines.append(
            f"| {row.method} | {row.budget:g} | {row.mean('work'):.3f} | {row.mean('rel_l2'):.4f} "
            f"| {row.mean('worst5'):.3f} | {worst:.3f} | {len(row.figures)} | {beside} |"
        )
    transfer = {
        method: excess(rows, method)
        for method in dict.fromkeys(row.method for row in rows)
        if method.startswith("profile") or method == "online budgets"
    }
    if of_method(rows, ORACLE) and transfer:
        budgets = sorted({budget for each in transfer.values() for budget in each})
        lines += ["", "Transfer: error above that of budgets solved on the judged evaluation itself, by budget:", ""]
        lines += ["| made from | " + " | ".join(f"{b:g}" for b in budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
        for method, each in transfer.items():
            cells = [f"{each[b]:+.1%}" if b in each else "-" for b in budgets]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _whole_section(scenario: Whole, rows: Sequence[WholeRow]) -> list[str]:
    if not rows:
        return [f"## {scenario.name}", "", "Not measured yet.", ""]
    lines = [
        f"## {scenario.name[0].upper()}{scenario.name[1:]}: {scenario.grid}, {scenario.steps} steps, "
        f"{scenario.warm} dense at the start",
        "",
        "Decoded frames against the dense run of the same seed; work is that of the whole run."
        + (" Seconds of processor time of the whole run, without decoding." if scenario.timed else ""),
        "",
        "| method | mean density | work | PSNR dB | SSIM | seeds | PSNR by seed |" + " seconds |" * scenario.timed,
        "|---|---|---|---|---|---|---|" + "---|" * scenario.timed,
    ]
    for row in rows:
        psnr, ssim = (sum(x.values()) / len(x) for x in (row.psnr, row.ssim))
        each = ", ".join(f"{seed}: {value:.1f}" for seed, value in row.psnr.items())
        figures = f"{psnr:.2f} | {ssim:.4f} | {len(row.psnr)} | {each}"
        if row.method == DENSE:
            figures = f"- | - | {len(row.psnr)} | -"
        seconds = f" {sum(row.cpu.values()) / len(row.cpu):.1f} |" if scenario.timed else ""
        lines.append(f"| {row.method} | {row.budget:g} | {row.work:.3f} | {figures} |{seconds}")
    return [*lines, ""]


def _sensitivity_section(scenario: Sensitivity, records: Sequence[Record]) -> list[str]:
    known = {str(record["unit"]): record for record in records if record["unit"][0] == "sensitivity"}

    def of(seeds: Sequence[int], what: str) -> list[Record]:
        keys = (str(sensitivity_unit(scenario, seed, step)) for seed in seeds for step in scenario.at_steps)
        return [known[key][what] for key in keys if key in known]

    weights, errors = of(scenario.weighing, "weights"), of(scenario.seeds, "errors")
    if not errors:
        return ["## A weight for each layer", "", "Not measured yet.", ""]
    lines = [
        "## A weight for each layer",
        "",
        "Each layer's weight is the squared error of the model's output per squared error of that layer's attention, "
        f"measured with that layer alone sparse on seeds {', '.join(map(str, scenario.weighing))}, by bucket of "
        f"progress: means by layer {', '.join(f'{sum(w) / len(w):.3g}' for w in zip(*weights, strict=True))}. "
        f"Judged on {len(errors)} other evaluations: relative L2 error of the model's output with all layers sparse.",
        "",
        "| mean work | plain absolute error | weighed by layer | weighed beside plain, evaluations it wins |",
        "|---|---|---|---|",
    ]
    for index, work in enumerate(scenario.works):
        plain, weighed = ([each[name][index] for each in errors] for name in ("plain", "weighed"))
        ratio = sum(b / a for a, b in zip(plain, weighed, strict=True)) / len(plain)
        wins = sum(b < a for a, b in zip(plain, weighed, strict=True))
        means = (sum(each) / len(each) for each in (plain, weighed))
        lines.append(
            f"| {work:g} | " + " | ".join(f"{x:.5f}" for x in means) + f" | {ratio:.3f}, {wins} of {len(plain)} |"
        )
    return [*lines, ""]
