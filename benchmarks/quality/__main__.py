"""`python -m benchmarks.quality [--quick] [--out DIR] [--model FILE] [--device cuda]`: the quality bench.

Part A measures attention error and recall on captured calls, part B pictures against their dense twins; every row is
given the same work (exact pairs plus tail). Writes CSVs, a Markdown page and a plot.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from demo import checkpoint

from . import captured, end_to_end
from .peer import load_peer
from .plan import BIG_GRIDS, Clock, EndToEndPlan, Plan, big, full, quick
from .report import Results, write
from .rows import Row, all_rows, distinct

OUT = Path(__file__).parents[1] / "results" / "quality"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py bench quality", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="within 20 minutes on 2 CPU cores")
    parser.add_argument("--big", action="store_true", help="one seed end to end at 8,640 tokens, within 10 minutes")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--model", type=Path, default=checkpoint.CHECKPOINT, help="weights of the tiny model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--minutes", type=float, help="another time limit")
    parser.add_argument("--part", choices=("captured", "end_to_end"), help="only this part")
    return parser.parse_args(argv)


def measure(plan: Plan, model_file: Path, device: str) -> Results:
    """Run `plan` on the model of a file."""
    clock = Clock(plan.minutes)
    model = checkpoint.load(model_file, device=device)
    rows, twins = distinct(all_rows())
    by_name = {row.name: row for row in rows}
    results = Results(plan.name, [], by_name, twins, [], [], [], list(plan.left_out))
    if load_peer() is None:
        results.left_out.append("comfy-kitchen itself: not installed (pip install comfy-kitchen==0.2.40)")
    with torch.inference_mode():
        if plan.captured is not None:
            measured, results.checks, left = captured.run_plan(model, plan.captured, rows, clock)
            results.summaries = captured.summarise(measured)
            results.left_out += left
        share = end_to_end.attention_share(model, BIG_GRIDS[0].tokens)
        for part in plan.end_to_end:
            cells, left = end_to_end.run_plan(model, _known_rows(part, by_name, twins), by_name, clock, share=share)
            results.cells += cells
            results.left_out += left
    results.conditions = conditions(plan, model_file, device, clock, share)
    return results


def _known_rows(part: EndToEndPlan, rows: dict[str, Row], twins: dict[str, str]) -> EndToEndPlan:
    """The plan with twins replaced by the rows they equal, each scenario once."""
    renamed = ((twins.get(row, row), *rest) for row, *rest in part.scenarios)
    return replace(part, scenarios=tuple(dict.fromkeys(renamed)))  # type: ignore[arg-type]


def conditions(plan: Plan, model_file: Path, device: str, clock: Clock, share: float) -> list[tuple[str, str]]:
    """What the figures depend on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    notes = ", ".join(f"{key} {value}" for key, value in checkpoint.notes(model_file).items())
    lines = [
        ("device", f"{device} ({name}), {torch.get_num_threads()} threads, float32, torch {torch.__version__}"),
        ("model", f"{model_file.name}, sha256 {hashlib.sha256(model_file.read_bytes()).hexdigest()[:16]} ({notes})"),
        ("time", f"{clock.used / 60:.1f} minutes of {plan.minutes:g}"),
    ]
    if load_peer() is not None:
        lines.append(("peer", f"comfy-kitchen {version('comfy-kitchen')}, eager reference"))
    if plan.captured is not None:
        a = plan.captured
        lines.append(
            (
                "captured calls",
                f"grids {', '.join(map(str, a.grids))}, seeds {', '.join(map(str, a.seeds))}, steps "
                f"{', '.join(map(str, a.at_steps))} of {a.steps} (from 0, Euler, no guidance), layers "
                f"{', '.join(map(str, a.layers))}; {a.sampled} query rows of each call, all heads",
            )
        )
    for b in plan.end_to_end:
        lines.append(
            (
                f"end to end, {b.name} grids",
                f"{', '.join(map(str, b.grids))}, seeds {', '.join(map(str, b.seeds))}, prompts in turn, demo sampler "
                f"(Euler, shift 5), guidance {b.cfg:g}; `dense_fewer` is dense with the steps that cost as much when "
                f"attention is {share:.0%} of a dense step, its share at {BIG_GRIDS[0].tokens:,} tokens",
            )
        )
    lines.append(
        (
            "work",
            "exact token pairs plus the tail's keys (one per pooled key and per rank, D/2 for the average matrix), "
            "as a share of dense; block means, the draft map and the one pass that makes the matrix are not counted",
        )
    )
    return lines


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    plan = quick() if arguments.quick else big() if arguments.big else full(on_gpu=arguments.device != "cpu")
    if arguments.minutes is not None:
        plan = replace(plan, minutes=arguments.minutes)
    if arguments.part == "captured":
        plan = replace(plan, end_to_end=(), left_out=(*plan.left_out, "end to end: --part captured"))
    if arguments.part == "end_to_end":
        plan = replace(plan, captured=None, left_out=(*plan.left_out, "captured calls: --part end_to_end"))
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        if not arguments.model.is_file():
            raise OSError(f"{arguments.model} is missing: train it with `python -m demo.train`")
        torch.empty(1, device=arguments.device)
    except (OSError, RuntimeError, AssertionError) as error:
        print(f"bench quality: {error}", file=sys.stderr)
        return 2
    for path in write(measure(plan, arguments.model, arguments.device), arguments.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
