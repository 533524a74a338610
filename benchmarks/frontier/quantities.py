"""What a skipped evaluation is forecast by: `python -m benchmarks.frontier.quantities`.

The same steps are skipped with the model's velocity, its x0, or the difference of velocity and latent carried on to
first order, under samplers that add noise, at a high shift and in few steps. Units go to `raw/quantities.jsonl` as soon
as they are measured; `--shard 1/2` and `2/2` share them, `--report` writes the page of what there is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from tqdm import tqdm

from benchmarks.frontier.fronts import Point, at_work
from benchmarks.frontier.noisy import NoisySolver, noisy_levels, sample_noisy
from benchmarks.frontier.plan import CHECKPOINTS
from benchmarks.frontier.rounds import scores
from benchmarks.frontier.runs import ledger_of
from benchmarks.frontier.samplers import sample, scheduler_of
from benchmarks.quality.capture import prompt_of
from benchmarks.quality.plan import SMALL_GRIDS
from benchmarks.quality.raw import WHOLE, Raw, Record, Shard, model_sha
from demo import checkpoint
from demo.flow import predict_velocity
from demo.latent import latent_to_rgb
from demo.sample import initial_noise
from draftattention.draftattn_core import Settings, TokenGrid
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.step_cache import StepCacheSettings
from draftattention.draftattn_core.run.step_cache.settings import QUANTITIES, Quantity
from draftattention.nodes.demo_prompts import prompt_embedding

OUT = Path(__file__).parents[1] / "results" / "frontier"
VERSION = 1
GRID = SMALL_GRIDS[0]
SEEDS = (0, 1)
WORKS = (0.4, 0.5, 0.6)


@dataclass(frozen=True)
class Case:
    """How a video is sampled.

    Attributes:
        thresholds: of the rule `forecast`; where noise is added its errors are larger.
        shares: of the rule `spread`.
    """

    solver: str
    steps: int
    shift: float
    thresholds: tuple[float, ...]
    shares: tuple[float, ...] = (0.4, 0.5)

    @property
    def name(self) -> str:
        return f"{self.solver}, {self.steps} steps, shift {self.shift:g}"

    def skips(self, quantity: Quantity) -> list[StepCacheSettings]:
        by_error = (StepCacheSettings("forecast", threshold, quantity=quantity) for threshold in self.thresholds)
        return [*by_error, *(StepCacheSettings("spread", share=share, quantity=quantity) for share in self.shares)]


CASES = (
    Case("euler", 20, 5.0, (0.05, 0.2, 0.8)),
    Case("euler_ancestral", 20, 5.0, (0.2, 0.4, 0.8)),
    Case("dpmpp_2m_sde", 20, 5.0, (0.2, 0.4, 0.8)),
    Case("euler", 20, 12.0, (0.05, 0.2, 0.8)),
    Case("euler", 8, 5.0, (0.1, 0.4), (0.5, 0.6)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 0."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    path = CHECKPOINTS["calm"]
    raw = Raw(arguments.out / "raw" / "quantities.jsonl", {"version": VERSION, "model": model_sha(path)})
    if not arguments.report:
        measure(checkpoint.load(path), raw, arguments.shard)
    (arguments.out / "quantities.md").write_text(page(raw.records()), encoding="utf-8")
    return 0


def measure(model: WanTransformer3DModel, raw: Raw, shard: Shard) -> None:
    """Every run that `raw` lacks."""
    rounds = [*product(CASES, SEEDS)][shard.index :: shard.of]
    known = [record["unit"] for record in raw.records()]
    for case, seed in tqdm(rounds, unit="round"):
        wanted = [skip for quantity in QUANTITIES for skip in case.skips(quantity)]
        missing = [skip for skip in wanted if _unit(case, seed, skip) not in known]
        if not missing:
            continue
        dense, _ = run(model, case, StepCacheSettings(), GRID, seed)
        for skip in missing:
            since = time.monotonic()
            frames, computed = run(model, case, skip, GRID, seed)
            spent = {"computed": computed, "took": round(time.monotonic() - since, 2)}
            raw.append({"unit": _unit(case, seed, skip), **spent, "scores": scores(frames, dense)})


def run(
    model: WanTransformer3DModel, case: Case, skip: StepCacheSettings, grid: TokenGrid, seed: int
) -> tuple[Tensor, int]:
    """Frames uint8 (T, H, W, 3), and how many evaluations were computed."""
    noise, text = initial_noise(grid.as_tuple(), seed), prompt_embedding(prompt_of(seed))
    draw = partial(torch.randn, noise.shape, generator=torch.Generator().manual_seed(1000 + seed))

    def velocity(x: Tensor, level: float) -> Tensor:
        return predict_velocity(model, x, torch.tensor([level]), text).float()

    known: dict[str, Any]
    sampled: Callable[[], Tensor]
    if case.solver in get_args(NoisySolver):
        solver: NoisySolver = case.solver  # type: ignore[assignment]
        # Timesteps alone say nothing of the sampler, so that the quantity asked for is the one that is forecast.
        known = {"timesteps": [1000 * level for level in noisy_levels(solver, case.steps, case.shift)[:-1]]}
        sampled = partial(sample_noisy, velocity, noise, draw, solver, case.steps, case.shift)
    else:
        known = {"scheduler": scheduler_of("euler", case.steps, case.shift)}
        sampled = partial(sample, velocity, noise, "euler", case.steps, case.shift)
    with apply_draft_attention(model, Settings(schedule=constant(1.0), skip=skip), **known) as handle:
        latent = sampled()
        computed = ledger_of(handle.finish_run(), case.steps).computed
    return torch.from_numpy(latent_to_rgb(latent)[0]), computed


def _unit(case: Case, seed: int, skip: StepCacheSettings) -> list[object]:
    setting = skip.share if skip.rule == "spread" else skip.threshold
    return [case.solver, case.steps, case.shift, str(GRID), seed, skip.rule, skip.quantity, setting]


def page(records: Iterable[Record]) -> str:
    """Markdown: every case with its runs, and at equal work."""
    by_unit = {str(record["unit"]): record for record in records}
    lines = [
        "# What is forecast",
        "",
        "Written by `python -m benchmarks.frontier.quantities`. Calm model, float32 on CPU, no guidance, no sparse "
        f"attention, grid {GRID}, seeds {', '.join(map(str, SEEDS))}. A cell has the evaluations computed, PSNR and "
        "SSIM against the dense run of the same sampler with the same noise, means over the seeds.",
    ]
    for case in CASES:
        lines += [
            "",
            f"## {case.name}",
            "",
            f"| setting | {' | '.join(QUANTITIES)} |",
            "|---" * (len(QUANTITIES) + 1) + "|",
        ]
        points: dict[Quantity, list[Point]] = {}
        rows: dict[str, list[str]] = {}
        for quantity in QUANTITIES:
            for skip in case.skips(quantity):
                found = [by_unit.get(str(_unit(case, seed, skip))) for seed in SEEDS]
                setting = f"{skip.rule} {skip.share if skip.rule == 'spread' else skip.threshold:g}"
                point = _mean(setting, [record for record in found if record is not None], case.steps)
                cell = "-" if point is None else f"{point.work * case.steps:g}: {point.psnr:.1f} dB ({point.ssim:.3f})"
                rows.setdefault(setting, []).append(cell)
                if point is not None and skip.rule == "forecast":
                    points.setdefault(quantity, []).append(point)
        lines += [f"| {setting} | {' | '.join(cells)} |" for setting, cells in rows.items()]
        for work in WORKS:
            cells = [_read(points.get(quantity, []), work) for quantity in QUANTITIES]
            lines.append(f"| forecast, read at a work of {work:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _read(points: Sequence[Point], work: float) -> str:
    found = [at_work(points, work, quality) for quality in ("psnr", "ssim")]
    return "-" if None in found else "{:.1f} dB ({:.3f})".format(*found)


def _mean(setting: str, records: Sequence[Record], steps: int) -> Point | None:
    """None unless every seed is there."""
    if len(records) < len(SEEDS):
        return None

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(records)

    return Point(
        setting,
        "",
        mean(record["computed"] / steps for record in records),
        psnr=mean(record["scores"]["psnr_db"] for record in records),
        ssim=mean(record["scores"]["ssim"] for record in records),
        flicker=mean(record["scores"]["flicker"] for record in records),
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.frontier.quantities", description="What forecasts carry on.")
    parser.add_argument(
        "--shard", type=Shard.parse, default=WHOLE, metavar="I/N", help="every N-th round from the I-th"
    )
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--report", action="store_true", help="measure nothing, write what there is")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
