"""Part B: whole runs through the pack's own diffusers host, against their dense twins."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch
from diffusers import WanTransformer3DModel
from tqdm import tqdm

from benchmarks.calibration.calibration_runs import Kept, merged
from benchmarks.calibration.plan import Whole
from benchmarks.frontier.methods import Method
from benchmarks.frontier.rounds import References, scores
from benchmarks.frontier.runs import Made, ledger_of, run
from benchmarks.frontier.samplers import sample, scheduler_of
from benchmarks.quality.capture import prompt_of
from benchmarks.quality.plan import Clock
from benchmarks.quality.raw import Raw, Shard
from demo.flow import predict_velocity
from demo.latent import latent_to_rgb
from demo.sample import initial_noise
from draftattention.draftattn_core import Settings, TokenGrid
from draftattention.draftattn_core.hosts.diffusers.apply import apply_draft_attention
from draftattention.draftattn_core.run.profile import Profile
from draftattention.draftattn_core.run.schedule import constant
from draftattention.nodes.demo_prompts import prompt_embedding

DENSE, UNIFORM, ONLINE, PROFILE = "dense", "uniform", "online budgets", "profile, other seeds"


def methods(scenario: Whole) -> list[tuple[str, float]]:
    """(name, mean density), what a run cut short should have first."""
    names = (UNIFORM, PROFILE) if scenario.timed else (UNIFORM, PROFILE, ONLINE)
    sparse = [(name, mean) for mean in reversed(scenario.means) for name in names]
    return [(DENSE, 1.0), *sparse] if scenario.timed else sparse


def unit(scenario: Whole, seed: int, name: str, mean: float) -> list[object]:
    """What a unit's figures depend on, beside the weights."""
    made = [run.key for run in scenario.calibration] if name == PROFILE else []
    return [
        "whole", str(scenario.grid), scenario.steps, seed, prompt_of(seed), scenario.warm, name, mean, made,
    ]  # fmt: skip


def measure_whole(
    model: WanTransformer3DModel,
    scenario: Whole,
    raw: Raw,
    kept: Kept,
    references: References,
    clock: Clock,
    shard: Shard,
) -> bool:
    """Every run that `raw` lacks while the clock has time. Returns whether all of this shard is done."""
    rounds = shard.pick([(scenario.grid, seed) for seed in scenario.seeds])
    wanted = methods(scenario)
    with tqdm(total=len(rounds) * len(wanted), unit="run", desc=scenario.name) as bar:
        for grid, seed in rounds:
            known = [record["unit"] for record in raw.records()]
            missing = [each for each in wanted if unit(scenario, seed, *each) not in known]
            bar.update(len(wanted) - len(missing))
            if not missing:
                continue
            if clock.left() < 0:
                return False
            profile = merged([kept.profile(model, each) for each in scenario.calibration])
            dense = Method("", steps=scenario.steps)
            twin = references.get(grid, seed, dense, lambda what: run(model, what, grid, seed).frames)  # noqa: B023
            for name, mean in missing:
                if clock.left() < 0:
                    return False
                since, cpu = time.monotonic(), time.process_time()
                made = sampled(model, settings_of(scenario, name, mean, profile), grid, seed, scenario.steps)
                cpu = time.process_time() - cpu
                raw.append(
                    {
                        "unit": unit(scenario, seed, name, mean),
                        "ledger": asdict(made.ledger),
                        "scores": scores(made.frames, twin),
                        "took": round(time.monotonic() - since, 2),
                        "cpu": round(cpu, 2),
                    }
                )
                bar.update()
    return True


def settings_of(scenario: Whole, name: str, mean: float, profile: Profile) -> Settings:
    """As the nodes make them: the pack's defaults, with the schedule's density spread as `name` says."""
    schedule = constant(mean, warmup=scenario.warm / scenario.steps)
    if name in (DENSE, UNIFORM):
        return Settings(schedule=schedule)
    return Settings(schedule=schedule, budgets="error", profile=profile if name == PROFILE else None)


def sampled(model: WanTransformer3DModel, settings: Settings, grid: TokenGrid, seed: int, steps: int) -> Made:
    """One Euler run under `settings`; see `benchmarks.frontier.runs.run` for what it raises."""
    levels = [float(level) for level in scheduler_of("euler", steps).sigmas[:steps]]
    text = prompt_embedding(prompt_of(seed))

    def velocity(x: torch.Tensor, level: float) -> torch.Tensor:
        return predict_velocity(model, x, torch.tensor([level]), text).float()

    with apply_draft_attention(model, settings, timesteps=[1000 * level for level in levels]) as handle:
        latent = sample(velocity, initial_noise(grid.as_tuple(), seed), "euler", steps)
        report = handle.finish_run()
    return Made(torch.from_numpy(latent_to_rgb(latent)[0]), ledger_of(report, steps))
