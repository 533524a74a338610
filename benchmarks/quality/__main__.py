"""`python -m benchmarks.quality [--quick] [--out DIR] [--model FILE] [--device cuda]`: the quality bench.

Part A measures attention error and recall on captured calls, part B pictures against their dense twins; every row is
given the same work (exact pairs plus tail). Writes CSVs, a Markdown page and a plot. Every finished unit is kept in
raw/ at once: a run that was stopped goes on from there, and several processes may work on parts or shards side by side.
"""

from __future__ import annotations

import argparse
import platform
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from benchmarks.quality import captured, end_to_end
from benchmarks.quality.baselines import baselines
from benchmarks.quality.end_to_end import attention_share
from benchmarks.quality.peer import load_peer
from benchmarks.quality.plan import BIG_GRIDS, Clock, EndToEndPlan, Plan, big, full, quick
from benchmarks.quality.plan import baselines as baselines_plan
from benchmarks.quality.raw import WHOLE, Raw, Shard, Store, effort, model_sha
from benchmarks.quality.report import Results, write
from benchmarks.quality.rows import Row, all_rows, distinct
from demo import checkpoint

OUT = Path(__file__).parents[1] / "results" / "quality"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py bench quality", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="within 20 minutes on 2 CPU cores")
    parser.add_argument("--big", action="store_true", help="one seed end to end at 8,640 tokens, within 10 minutes")
    parser.add_argument("--baselines", action="store_true", help="published systems with and without our tail")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--model", type=Path, default=checkpoint.CHECKPOINT, help="weights of the tiny model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--minutes", type=float, help="another time limit for this sitting")
    parser.add_argument(
        "--part", nargs="+", default=[], help="only these: captured, end_to_end, or small, more, big of end_to_end"
    )
    parser.add_argument("--shard", type=Shard.parse, default=WHOLE, help="1/2 or 2/2: only every second round")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured of these parts before")
    parser.add_argument("--page", action="store_true", help="measure nothing, only write the page from what there is")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Bench:
    """A plan on the model of a file, and where what it measures is kept.

    Attributes:
        share: of attention in a dense step at the size of the big grids.
    """

    plan: Plan
    model: WanTransformer3DModel
    model_file: Path
    store: Store
    rows: dict[str, Row]
    twins: dict[str, str]
    share: float

    @classmethod
    def load(cls, plan: Plan, model_file: Path, device: str, out: Path) -> Bench:
        rows, twins = distinct(baselines() if plan.name == "baselines" else all_rows())
        by_name = {row.name: row for row in rows}
        plan = replace(plan, end_to_end=tuple(_known_rows(part, by_name, twins) for part in plan.end_to_end))
        model = checkpoint.load(model_file, device=device)
        store = Store(out / "raw", plan.name, model_sha(model_file), torch.device(device).type)
        return cls(plan, model, model_file, store, by_name, twins, attention_share(model, BIG_GRIDS[0].tokens))

    @property
    def captured_rows(self) -> list[Row]:
        """Rows that a single call says something about."""
        return [row for row in self.rows.values() if row.kind != "rettention"]

    def raws(self, parts: Collection[str]) -> list[Raw]:
        """The raw files of the parts named (all if none is)."""
        found = [self.store.end_to_end(part) for part in self._chosen(parts)]
        if self.plan.captured is not None and (not parts or "captured" in parts):
            found.insert(0, self.store.captured(self.plan.captured))
        return found

    def _chosen(self, parts: Collection[str]) -> list[EndToEndPlan]:
        return [b for b in self.plan.end_to_end if not parts or "end_to_end" in parts or b.name in parts]

    def measure(self, parts: Collection[str], shard: Shard, clock: Clock) -> None:
        """Measure what the raw files lack of the parts named (all if none is). These may use up the whole time."""
        a, rows = self.plan.captured, self.captured_rows
        with torch.inference_mode():
            if a is not None and (not parts or "captured" in parts):
                part = replace(a, share=1.0) if parts else a
                captured.run_plan(self.model, part, rows, clock, self.store.captured(a), shard)
            for b in self._chosen(parts):
                part_b = replace(b, share=1.0) if parts else b
                raw = self.store.end_to_end(b)
                end_to_end.run_plan(self.model, part_b, self.rows, clock, raw, share=self.share, shard=shard)

    def results(self, device: str) -> Results:
        """Everything the raw files hold of the plan, whoever measured it when."""
        plan = self.plan
        results = Results(plan.name, [], self.rows, self.twins, [], [], [], list(plan.left_out))
        if load_peer() is None:
            results.left_out.append("comfy-kitchen itself: not installed (pip install comfy-kitchen==0.2.40)")
        if plan.captured is not None:
            raw = self.store.captured(plan.captured)
            measured, results.checks, left = captured.collect(plan.captured, self.captured_rows, raw)
            results.summaries = captured.summarise(measured)
            results.left_out += left
        for b in plan.end_to_end:
            cells, left = end_to_end.collect(b, self.rows, self.store.end_to_end(b), share=self.share)
            results.cells += cells
            results.left_out += left
        results.conditions = conditions(self, device)
        return results


def _known_rows(part: EndToEndPlan, rows: dict[str, Row], twins: dict[str, str]) -> EndToEndPlan:
    """The plan with twins replaced by the rows they equal, each scenario once."""
    renamed = ((twins.get(row, row), *rest) for row, *rest in part.scenarios)
    return replace(part, scenarios=tuple(dict.fromkeys(renamed)))  # type: ignore[arg-type]


def conditions(bench: Bench, device: str) -> list[tuple[str, str]]:
    """What the figures depend on."""
    plan, model_file = bench.plan, bench.model_file
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    notes = ", ".join(f"{key} {value}" for key, value in checkpoint.notes(model_file).items())
    lines = [
        ("device", f"{device} ({name}), float32, torch {torch.__version__}"),
        ("model", f"{model_file.name}, sha256 {bench.store.model} ({notes})"),
    ]
    if plan.captured is not None:
        lines.append(("time, captured calls", effort(bench.store.captured(plan.captured).records())))
    for b in plan.end_to_end:
        lines.append((f"time, end to end, {b.name} grids", effort(bench.store.end_to_end(b).records())))
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
                f"attention is {bench.share:.0%} of a dense step, its share at {BIG_GRIDS[0].tokens:,} tokens",
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
    if arguments.baselines:
        plan = baselines_plan()
    else:
        plan = quick() if arguments.quick else big() if arguments.big else full(on_gpu=arguments.device != "cpu")
    clock = Clock(plan.minutes if arguments.minutes is None else arguments.minutes)
    parts = set(arguments.part)
    try:
        if parts - set(plan.parts):
            raise OSError(f"the {plan.name} run has the parts {', '.join(plan.parts)}; not {', '.join(arguments.part)}")
        arguments.out.mkdir(parents=True, exist_ok=True)
        if not arguments.model.is_file():
            raise OSError(f"{arguments.model} is missing: train it with `python -m demo.train`")
        torch.empty(1, device=arguments.device)
        bench = Bench.load(plan, arguments.model, arguments.device, arguments.out)
        if arguments.page and not any(raw.records() for raw in bench.raws(())):
            raise OSError(f"nothing is measured yet in {bench.store.folder}: run without --page")
    except (OSError, RuntimeError, AssertionError) as error:
        print(f"bench quality: {error}", file=sys.stderr)
        return 2
    stopped = False
    if not arguments.page:
        if arguments.fresh:
            for raw in bench.raws(parts):
                raw.path.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            bench.measure(parts, arguments.shard, clock)
        except KeyboardInterrupt:
            print("bench quality: stopped; the same command goes on from here", file=sys.stderr)
            stopped = True
    for path in write(bench.results(arguments.device), arguments.out):
        print(path)
    return 130 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
