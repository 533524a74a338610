"""`python run.py bench calibration [--quick]`: budgets by measured error, profiles and masks at equal work.

Part A judges every method on captured evaluations, part B whole runs. Units go to `raw/units.jsonl` as soon as they are
measured; a second call goes on where the first one stopped, `--shard 1/2` and `--shard 2/2` share the rounds between
two processes, `--report` writes table, page and plot of what there is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.calibration.calibration_runs import Kept
from benchmarks.calibration.captured import measure_captured
from benchmarks.calibration.plan import Captured, PortableMasks, Priors, Scenario, Sensitivity, scenarios
from benchmarks.calibration.portable_runs import measure_portable
from benchmarks.calibration.prior_runs import measure_priors
from benchmarks.calibration.report import write
from benchmarks.calibration.sensitivity import measure_sensitivity
from benchmarks.calibration.whole import measure_whole
from benchmarks.frontier.rounds import References
from benchmarks.quality.plan import Clock
from benchmarks.quality.raw import WHOLE, Raw, Shard, model_sha
from demo import checkpoint
from demo.work import attention_share

OUT = Path(__file__).parents[1] / "results" / "calibration"
# Raised when the bench measures something else under the same name.
VERSION = 1
QUICK_MINUTES = 18.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 0, or 2 for bad input."""
    arguments = parse(argv)
    clock = Clock(arguments.minutes if arguments.minutes is not None else QUICK_MINUTES if arguments.quick else 1e9)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    wanted = [s for s in scenarios(arguments.quick) if arguments.only is None or arguments.only in s.name]
    if not wanted:
        names = "; ".join(s.name for s in scenarios(arguments.quick))
        print(f"no scenario is called {arguments.only!r}; there are: {names}", file=sys.stderr)
        return 2
    if not arguments.model.is_file():
        print(f"{arguments.model} is missing: train it with `python -m demo.train`", file=sys.stderr)
        return 2
    sha = model_sha(arguments.model)
    raw = Raw(arguments.out / "raw" / "units.jsonl", {"version": VERSION, "model": sha, "device": "cpu"})
    try:
        if not arguments.report:
            _measure(wanted, arguments.model, raw, arguments.out / "raw", sha, clock, arguments.shard)
    except KeyboardInterrupt:
        print("bench calibration: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        plans = scenarios(quick=False)
        model = checkpoint.load(arguments.model)
        shares = {str(plan.grid): attention_share(model, plan.grid.tokens) for plan in plans}
        for path in write(plans, raw.records(), shares, arguments.out):
            print(path)
    return 0


def _measure(
    wanted: Sequence[Scenario], path: Path, raw: Raw, folder: Path, sha: str, clock: Clock, shard: Shard
) -> None:
    model = checkpoint.load(path)
    kept, references = Kept(folder / "runs", sha), References(folder / "clips", sha)
    for scenario in wanted:
        if clock.left() < 0:
            return
        if isinstance(scenario, Captured):
            measure_captured(model, scenario, raw, kept, clock, shard)
        elif isinstance(scenario, Sensitivity):
            measure_sensitivity(model, scenario, raw, kept, clock, shard)
        elif isinstance(scenario, Priors):
            measure_priors(model, scenario, raw, clock, shard)
        elif isinstance(scenario, PortableMasks):
            measure_portable(model, scenario, raw, kept, clock, shard)
        else:
            measure_whole(model, scenario, raw, kept, references, clock, shard)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py bench calibration", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small grid, within 20 minutes on 2 CPU cores")
    parser.add_argument("--minutes", type=float, help="stop measuring after this time; a later call goes on")
    parser.add_argument("--only", metavar="TEXT", help="only scenarios whose name holds this text")
    parser.add_argument("--shard", type=Shard.parse, default=WHOLE, help="1/2 or 2/2: only every second round")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--report", action="store_true", help="measure nothing, only write what there is")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--model", type=Path, default=checkpoint.CHECKPOINT, help="weights of the tiny model")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
