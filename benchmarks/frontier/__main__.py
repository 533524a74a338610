"""``python run.py bench frontier [--quick]``: quality against work for every lever and pair of levers.

Units go to `raw/` as soon as they are measured; a second call goes on where the first one stopped, `--shard 1/2` and
`--shard 2/2` share the rounds between two processes, `--report` writes table and plots of what there is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.frontier.page import page
from benchmarks.frontier.plan import CHECKPOINTS, CONVERGED_STEPS, Scenario, scenarios
from benchmarks.frontier.plot import plot
from benchmarks.frontier.report import Table, rows, tabulate
from benchmarks.frontier.rounds import References, measure, whole_rounds
from benchmarks.frontier.speeds import candidates, choose
from benchmarks.frontier.summary import write_picture
from benchmarks.frontier.tried import BESIDE, RawBeside, TriedScenario, tried_scenario
from benchmarks.frontier.work import SHARES
from benchmarks.quality.plan import Clock
from benchmarks.quality.raw import WHOLE, Raw, Record, Shard, model_sha
from demo import checkpoint
from demo.work import attention_share
from draftattention.draftattn_core import TokenGrid

OUT = Path(__file__).parents[1] / "results" / "frontier"
QUICK_OUT = Path(__file__).parents[2] / "outputs" / "frontier"
SCHEMA = 1
# Raised when the bench measures something else under the same name.
VERSION = 1
QUICK_MINUTES = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 0, or 2 for bad input."""
    arguments = parse(argv)
    clock = Clock(arguments.minutes if arguments.minutes is not None else QUICK_MINUTES if arguments.quick else 1e9)
    threads = torch.get_num_threads() if arguments.threads is None else arguments.threads
    torch.set_num_threads(threads)
    all_of_them: list[Scenario] = [*scenarios(arguments.quick), *([] if arguments.quick else [tried_scenario()])]
    wanted = [s for s in all_of_them if arguments.only is None or arguments.only in s.name]
    if not wanted:
        names = "; ".join(s.name for s in all_of_them)
        print(f"no scenario is called {arguments.only!r}; there are: {names}", file=sys.stderr)
        return 2
    if not arguments.report:
        for scenario in wanted:
            path = CHECKPOINTS[scenario.model]
            if path.is_file() and clock.left() > 0:
                references = References(arguments.out / "raw" / "clips", model_sha(path))
                measure(
                    checkpoint.load(path),
                    scenario,
                    raw_of(arguments.out, scenario),
                    references,
                    clock,
                    shard=arguments.shard,
                    converged=arguments.converged,
                )
    write(arguments.out, all_of_them)
    return 0


def raw_of(out: Path, scenario: Scenario) -> Raw:
    """Where a scenario's units are kept; rows that were also tried have a file of their own."""
    identity = {"version": VERSION, "model": model_sha(CHECKPOINTS[scenario.model]), "device": "cpu"}
    units = Raw(out / "raw" / "units.jsonl", identity)
    return RawBeside(out / "raw" / "tried.jsonl", identity, units) if isinstance(scenario, TriedScenario) else units


def write(out: Path, wanted: Sequence[Scenario]) -> None:
    """frontier.json, frontier.md and the plots, of the whole rounds there are."""
    found: list[dict[str, object]] = []
    tables: list[tuple[Table, list[str]]] = []
    tried: Table | None = None
    missing: list[str] = []
    out.mkdir(parents=True, exist_ok=True)
    for scenario in wanted:
        path = CHECKPOINTS[scenario.model]
        if not path.is_file():
            missing.append(f"{scenario.name}: the checkpoint {path.name} is not here.")
            continue
        model, records = checkpoint.load(path), raw_of(out, scenario).records()

        def share_of(grid: str, model: torch.nn.Module = model) -> float:
            t, h, w = map(int, grid.split("x"))
            return attention_share(model, TokenGrid(t, h, w).tokens)

        whole = len(whole_rounds(scenario, records))
        if whole < len(scenario.rounds):
            missing.append(f"{scenario.name}: {whole} of {len(scenario.rounds)} rounds are whole.")
        if isinstance(scenario, TriedScenario):
            found += [row for row in rows(scenario, records, share_of) if row["family"] not in BESIDE]
            tried = tabulate(scenario, records, None, share_of)
            continue
        found += rows(scenario, records, share_of)
        for share in SHARES.values():
            table = tabulate(scenario, records, share, share_of)
            if table is None:
                continue
            pictures = plots(scenario, records, share_of, out) if share is None else []
            tables.append((table, pictures))
    try:
        write_picture(found, choose(candidates(found)), out / "speeds.png")
    except ValueError as error:
        missing.append(f"speeds: {error}.")
    (out / "frontier.json").write_text(json.dumps({"schema": SCHEMA, "rows": found}, indent=1) + "\n", encoding="utf-8")
    conditions = [
        "Tiny trained video DiT (calm: the demo's; lively: faster and finer videos), float32 on CPU, no guidance, "
        "shift 5, through the diffusers host of this pack.",
        "PSNR, SSIM and flicker are those of decoded frames against the dense run of the scenario's steps by the "
        "same sampler from the same noise (DPM++ 2M and UniPC as ComfyUI has them); the converged path is "
        f"{CONVERGED_STEPS} Euler steps.",
        "Work counts multiplications beside that dense run: exact pairs, the tails' keys, the rest of the model at its "
        "share; answered evaluations are free. Draft, selection and probe are not counted.",
        "A family's value at a work is read off its front, linear between points; bold is the best of all families.",
        "In the verdicts compositions are chosen on every second seed and judged on "
        "the others, then the other way round: the mean of both, and in brackets each.",
    ]
    (out / "frontier.md").write_text(page(tables, tried, conditions, missing), encoding="utf-8")
    print(f"{len(found)} rows, {len(tables)} tables in {out}")


def plots(scenario: Scenario, records: list[Record], share_of: Callable[[str], float], out: Path) -> list[str]:
    """One plot for every grid with a whole round; the names of their files in `out`."""
    names = []
    for grid in scenario.grids:
        table = tabulate(replace(scenario, grids=(grid,)), records, None, share_of)
        if table is not None:
            names.append(f"{scenario.model}-{scenario.steps}-steps-{grid}.png")
            plot(table, out / names[-1])
    return names


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py bench frontier", description="Quality at equal work, all levers.")
    parser.add_argument("--quick", action="store_true", help=f"one small grid, {QUICK_MINUTES:.0f} minutes at most")
    parser.add_argument("--minutes", type=float, help="stop measuring after this time; a later call goes on")
    parser.add_argument("--only", metavar="TEXT", help="only scenarios whose name holds this text")
    parser.add_argument(
        "--shard", type=Shard.parse, default=WHOLE, metavar="I/N", help="every N-th round from the I-th"
    )
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--converged", action="store_true", help="also compare with 200 Euler steps")
    parser.add_argument("--report", action="store_true", help="measure nothing, write what there is")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/frontier, with --quick outputs/frontier")
    arguments = parser.parse_args(argv)
    # A quick run has a few of the scenarios: it must not stand in for the committed table.
    arguments.out = arguments.out or (QUICK_OUT if arguments.quick else OUT)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
