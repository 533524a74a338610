"""What the report says of portable masks: tables of calls, of whole runs, and of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from benchmarks.calibration.evaluation import JUDGED_ROWS
from benchmarks.calibration.mask_memory import GRIDS, PUBLISHED_GB, STEPS, WAN_14B, mask_memory
from benchmarks.calibration.plan import PortableMasks
from benchmarks.calibration.portable import Judged
from benchmarks.calibration.portable_runs import WHOLE, bytes_unit, captured_unit, kinds_on, whole_unit
from benchmarks.quality.raw import Record
from draftattention.draftattn_core import TokenGrid
from draftattention.draftattn_core.method.calibatt.intervals import MOST_RUNS

Line = tuple[float, float, float, float, float]


def summary(evaluations: Sequence[Sequence[Judged]]) -> Line:
    """Exact work, work of the tail, recall, relative L2 dropped and with our tail; means over evaluations."""
    rows = []
    for layers in evaluations:
        dropped, ours, norm, recall, work, tail = (list(each) for each in zip(*layers, strict=True))
        errors = (math.sqrt(sum(wrong) / sum(norm)) for wrong in (dropped, ours))
        rows.append((mean(work), mean(tail), mean(recall), *errors))
    work, tail, recall, without, with_tail = (mean(each) for each in zip(*rows, strict=True))
    return work, tail, recall, without, with_tail


def _words(kind: str, tail: bool) -> str:
    return f"{kind}, {'our tail' if tail else 'dropped'}"


def portable_json(scenario: PortableMasks, records: Sequence[Record]) -> list[dict[str, object]]:
    """Rows of calibration.json."""
    known = {str(record["unit"]): record for record in records}
    made_from = " ".join(run.key for run in scenario.calibration)
    rows: list[dict[str, object]] = []
    for grid in (scenario.grid, scenario.other):
        base = {"grid": str(grid), "steps": scenario.steps, "held_out": True, "made_from": made_from}
        for mass in scenario.masses:
            record = known.get(str(captured_unit(scenario, mass, grid)))
            for kind in kinds_on(scenario, grid) if record else ():
                work, tail, recall, *errors = summary(record["figures"][kind])
                for has_tail, error in zip((False, True), errors, strict=True):
                    total = work + tail if has_tail else work
                    figures = {"work": round(total, 4), "rel_l2": round(error, 5), "worst5": None}
                    figures |= {"psnr_db": None, "ssim": None, "recall": round(recall, 5)}
                    name = _words(kind, has_tail)
                    rows.append({"part": "portable", "method": name, "budget": mass, **figures, **base})
        for kind, has_tail in WHOLE:
            found = _whole(scenario, grid, kind, has_tail, known)
            if found:
                psnr, ssim = (round(mean(one["scores"][name] for one in found), 5) for name in ("psnr_db", "ssim"))
                total = round(mean(one["work"] + one["tail_work"] for one in found), 4)
                figures = {"work": total, "rel_l2": None, "worst5": None, "psnr_db": psnr, "ssim": ssim}
                figures |= {"evaluations": len(found)}
                name = _words(kind, has_tail)
                rows.append(
                    {"part": "portable, whole", "method": name, "budget": scenario.masses[0], **figures, **base}
                )
    return rows


def _whole(scenario: PortableMasks, grid: TokenGrid, kind: str, tail: bool, known: dict[str, Record]) -> list[Record]:
    keys = (str(whole_unit(scenario, grid, seed, kind, tail)) for seed in scenario.seeds)
    return [known[key] for key in keys if key in known]


def portable_section(scenario: PortableMasks, records: Sequence[Record]) -> list[str]:
    known = {str(record["unit"]): record for record in records}
    heading = [f"## {scenario.name[0].upper()}{scenario.name[1:]}", ""]
    keys = [captured_unit(scenario, mass, grid) for mass in scenario.masses for grid in (scenario.grid, scenario.other)]
    if not any(str(key) in known for key in keys):
        return [*heading, "Not measured yet.", ""]
    seeds = [str(run.seed) for run in scenario.calibration]
    runs = f"{len(seeds)} run{'s' if len(seeds) > 1 else ''} (seed {', '.join(seeds)})"
    lines = [
        *heading,
        f"Everything rests on {runs} at {scenario.grid}. Exact masks are voted (raster order, blocks of "
        "128, no repetition heads) and hold on that grid only. The portable forms are made in our layout, one for each "
        "layer and bucket of progress. Scores get the density of the exact masks' step, layer and head, sets its mean "
        "over the bucket, our draft one density for all heads, the mean of that step. Recall is the share of softmax "
        "mass in what is kept, mean over judged rows, heads and layers. Gains of our tail are fitted to the judged "
        "call (64 rows).",
        "",
        f"Captured: steps {', '.join(map(str, scenario.at_steps))} (from 0) of seed {scenario.seeds[0]}, all layers, "
        f"{JUDGED_ROWS} rows of each; the error is relative L2 of all layers together.",
        "",
        "| grid | mass | kept by | exact work | recall | error, dropped | error, our tail | work of the tail |",
        "|---|---|---|---|---|---|---|---|",
    ]
    grids = (scenario.grid, scenario.other)
    for grid in grids:
        for mass in scenario.masses:
            record = known.get(str(captured_unit(scenario, mass, grid)))
            for kind in kinds_on(scenario, grid) if record else ():
                work, tail, recall, dropped, ours = summary(record["figures"][kind])
                figures = f"{work:.3f} | {recall:.4f} | {dropped:.4f} | {ours:.4f} | {tail:.3f}"
                lines.append(f"| {grid} | {mass:g} | {kind} | {figures} |")
    whole: list[str] = []
    for grid in grids:
        for kind, tail in WHOLE:
            found = _whole(scenario, grid, kind, tail, known)
            if found:
                psnr, ssim = (mean(one["scores"][name] for one in found) for name in ("psnr_db", "ssim"))
                work = mean(one["work"] + one["tail_work"] for one in found)
                each = ", ".join(f"{one['unit'][6]}: {one['scores']['psnr_db']:.1f}" for one in found)
                whole.append(f"| {grid} | {_words(kind, tail)} | {work:.3f} | {psnr:.2f} | {ssim:.4f} | {each} |")
    head = [
        "",
        f"Whole runs of {scenario.steps} steps, none of them dense by rule, mass {scenario.masses[0]:g}: decoded "
        "frames against the dense run of the seed. Work is that of attention with the tail. Gains are fitted at the "
        "first call of each layer and bucket.",
        "",
        "| grid | kept by | work | PSNR dB | SSIM | PSNR by seed |",
        "|---|---|---|---|---|---|",
    ]
    lines += [*head, *whole] if whole else ["", "Whole runs: not measured yet."]
    for mass in scenario.masses:
        record = known.get(str(bytes_unit(scenario, mass)))
        if record:
            sizes = ", ".join(f"{name} {size / 1e3:,.1f}" for name, size in record["bytes"].items())
            lines += ["", f"Memory of all steps and layers, mass {mass:g}, kB: {sizes}."]
    return [*lines, ""]


def memory_section() -> list[str]:
    published = " -> ".join(f"{gb:g}" for gb in PUBLISHED_GB)
    lines = [
        "## Memory of masks",
        "",
        f"Memory of Wan 14B's masks at {STEPS} steps by arithmetic from this package's formats, GB (10^9 bytes). The "
        f"paper has {published} GB at 720p: lists as they come, trimmed per layer, runs merged, late steps grouped.",
        "",
        "| | " + " | ".join(GRIDS) + " |",
        "|---" * (len(GRIDS) + 1) + "|",
    ]
    found = [mask_memory(WAN_14B, grid, STEPS) for grid in GRIDS.values()]
    names = {
        "longest_lists": "interval lists, a run in every second block",
        "merged_lists": f"interval lists, at most {MOST_RUNS} runs a row, as a run keeps them",
        "bits": "a bit for each pair of blocks",
        "votes": "votes, as a calibration's file keeps them",
        "scores": "portable scores, raster order, as a run keeps them",
        "our_scores": "portable scores in our layout",
        "our_sets": "sets of displacements in our layout",
        "profile": "profile without masks",
    }
    for name, words in names.items():
        lines.append(f"| {words} | " + " | ".join(f"{getattr(one, name) / 1e9:.4f}" for one in found) + " |")
    return [*lines, ""]
