"""Train the tiny Wan model from a seed: `python -m demo.train` (MODEL_CARD.md has the run behind the shipped file)."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from tqdm import tqdm

from demo import checkpoint
from demo.data import LOOKS, Look, latent_batch
from demo.flow import predict_velocity, shifted, split_error, visible_velocity_error
from draftattention.nodes.demo_prompts import prompt_embedding

RUNS = Path(__file__).with_name("runs")

Grid = tuple[int, int, int]
GRIDS: dict[str, tuple[Grid, ...]] = {
    "small": ((3, 8, 12), (3, 12, 8), (4, 8, 10), (5, 8, 12), (3, 10, 16)),
    "medium": ((5, 12, 16), (5, 16, 12), (9, 8, 12), (4, 14, 20)),
    "large": ((3, 24, 40), (5, 16, 24), (9, 12, 20), (7, 16, 20), (5, 24, 16)),
    "demo": ((9, 24, 40), (9, 20, 32), (9, 32, 20), (5, 24, 40)),
}
# (progress at which it ends, share of steps per grid family)
CURRICULUM = (
    (0.45, {"small": 0.80, "medium": 0.20}),
    (0.70, {"small": 0.40, "medium": 0.40, "large": 0.20}),
    (0.86, {"small": 0.15, "medium": 0.35, "large": 0.47, "demo": 0.03}),
    (1.01, {"medium": 0.30, "large": 0.45, "demo": 0.25}),
)
TOKENS_PER_STEP = 3072
PROMPT_DROPOUT = 0.12
# The 13 invisible directions hold noise only; they need to be right, not to dominate.
INVISIBLE_WEIGHT = 0.25


def tokens(grid: Grid) -> int:
    return math.prod(grid)


def step_flop(model: WanTransformer3DModel, batch: int, grid: Grid) -> float:
    """Floating-point operations of one training step: 6 per weight and token, 12 per attention pair and channel."""
    config, n = model.config, tokens(grid)
    width = config.num_attention_heads * config.attention_head_dim
    weights = config.num_layers * (6 * width * width + 2 * width * config.ffn_dim)
    return batch * (6.0 * weights * n + 12.0 * config.num_layers * width * n * n)


def draw_grid(progress: float, generator: torch.Generator) -> Grid:
    shares = next(shares for end, shares in CURRICULUM if progress < end)
    family = list(shares)[int(torch.multinomial(torch.tensor(list(shares.values())), 1, generator=generator))]
    return GRIDS[family][int(torch.randint(len(GRIDS[family]), (1,), generator=generator))]


def draw_sigma(batch: int, grid: Grid, generator: torch.Generator, *, even: bool = False) -> torch.Tensor:
    """Noise levels (B,), shifted up with the token count (big frames hide less under the same noise).

    Before the shift they are logit-normal or, if `even`, spread as evenly as a sampler's steps are: the levels next to
    pure noise, where a video's colours are settled, come up rarely otherwise.
    """
    shift = min(5.0, max(2.0, 1.5 * math.sqrt(tokens(grid) / 288)))
    if even:
        return shifted(torch.rand(batch, generator=generator), shift)
    return shifted(torch.randn(batch, generator=generator).mul(1.2).sigmoid(), shift)


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine down to 2 % of the peak."""
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@dataclass
class Trainer:
    """Model, optimisers, averaged weights and the random state of one run."""

    model: WanTransformer3DModel
    rate: float
    seed: int
    look: Look = LOOKS["calm"]
    even_levels: bool = False

    def __post_init__(self) -> None:
        matrices, others = [], []
        for name, parameter in self.model.named_parameters():
            inside = name.startswith("blocks.") and parameter.ndim == 2
            (matrices if inside else others).append(parameter)
        # Muon needs far fewer steps than AdamW on the weight matrices of the blocks.
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=self.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=self.rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=True),
        ]
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.generator = torch.Generator().manual_seed(self.seed)
        self.step_count, self.flop, self.seconds = 0, 0.0, 0.0

    def state(self) -> dict[str, object]:
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "counts": (self.step_count, self.flop, self.seconds),
        }

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.step_count, self.flop, self.seconds = state["counts"]

    def step(self, progress: float, *, bfloat16: bool = False) -> tuple[float, Grid]:
        """One optimiser step; returns the mean square velocity error in the visible directions and the grid."""
        grid = draw_grid(progress, self.generator)
        batch = max(1, TOKENS_PER_STEP // tokens(grid))
        x0, prompts = latent_batch(self.generator, batch, grid, self.look)
        noise = torch.randn(x0.shape, generator=self.generator)
        sigma = draw_sigma(batch, grid, self.generator, even=self.even_levels)
        dropped = torch.rand(batch, generator=self.generator) < PROMPT_DROPOUT
        text = torch.cat(
            [prompt_embedding("" if drop else prompt) for prompt, drop in zip(prompts, dropped.tolist(), strict=True)]
        )
        level = sigma.view(-1, 1, 1, 1, 1)
        device = next(self.model.parameters()).device
        x, velocity, sigma, text = (
            value.to(device) for value in ((1 - level) * x0 + level * noise, noise - x0, sigma, text)
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            found = predict_velocity(self.model, x, sigma, text)
        seen, unseen = split_error(found.float() - velocity)
        ((3 * seen + INVISIBLE_WEIGHT * 13 * unseen) / (3 + INVISIBLE_WEIGHT * 13)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = learning_rate(progress, self.step_count, self.rate)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.step_count += 1
        self.flop += step_flop(self.model, batch, grid)
        decay = min(0.997, self.step_count / (self.step_count + 20))
        current = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [current[name] for name in self.average], 1 - decay)
        return seen.item(), grid


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    model = checkpoint.new_model().to(arguments.device).train()
    torch.nn.init.zeros_(model.proj_out.weight)
    if arguments.start is not None:
        model.load_state_dict(checkpoint.load(arguments.start).state_dict())
    trainer = Trainer(model, arguments.rate, arguments.seed, LOOKS[arguments.look], arguments.even_levels)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    resume_file = arguments.runs / "state.pt"
    if arguments.resume:
        trainer.restore(torch.load(resume_file, map_location=arguments.device))
    start, saved = time.monotonic() - trainer.seconds, time.monotonic()
    smooth: dict[Grid, float] = {}

    def progress() -> float:
        by_time = trainer.seconds / (60 * arguments.minutes) if arguments.minutes else 0.0
        return max(trainer.flop / (1e12 * arguments.tflop), by_time)

    def save() -> None:
        torch.save(trainer.state(), resume_file)
        averaged = checkpoint.new_model().to(arguments.device).eval()
        averaged.load_state_dict(trainer.average)
        errors = {
            sigma: visible_velocity_error(averaged, sigma, look=LOOKS[arguments.look]) for sigma in (0.3, 0.6, 0.9)
        }
        notes = {
            "seed": arguments.seed,
            "look": arguments.look,
            "even_levels": arguments.even_levels,
            "start": None if arguments.start is None else arguments.start.name,
            "steps": trainer.step_count,
            "tflop": round(trainer.flop / 1e12, 1),
            "minutes": round(trainer.seconds / 60, 1),
            "velocity_error": {sigma: round(found, 4) for sigma, (found, _) in errors.items()},
            "velocity_variance": {sigma: round(blind, 4) for sigma, (_, blind) in errors.items()},
        }
        checkpoint.save(trainer.average, arguments.out, notes=notes)
        recent = {"x".join(map(str, grid)): round(value, 4) for grid, value in sorted(smooth.items())}
        tqdm.write(f"{arguments.out.name}: {notes}; recent training error by grid: {recent}")

    with tqdm(
        total=100.0, unit="%", bar_format="{desc} {percentage:5.1f}%|{bar:20}| {elapsed}<{remaining}", mininterval=5
    ) as bar:
        while (done := progress()) < 1.0:
            error, grid = trainer.step(done, bfloat16=arguments.bf16)
            trainer.seconds = time.monotonic() - start
            if not math.isfinite(error):
                raise SystemExit(f"the loss is {error} at step {trainer.step_count}: lower --rate and start again")
            smooth[grid] = error if grid not in smooth else 0.95 * smooth[grid] + 0.05 * error
            bar.set_description(
                f"step {trainer.step_count} error {sum(smooth.values()) / len(smooth):.3f}", refresh=False
            )
            bar.update(100 * min(1.0, progress()) - bar.n)
            if time.monotonic() - saved > 60 * arguments.save_every:
                save()
                saved = time.monotonic()
    save()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--look", choices=list(LOOKS), default="calm", help="of the videos: lively are faster and finer"
    )
    parser.add_argument(
        "--even-levels", action="store_true", help="draw noise levels as evenly as a sampler's steps lie"
    )
    parser.add_argument("--start", type=Path, help="weights to go on from instead of random ones")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--tflop", type=float, default=400.0, help="training work, in 1e12 operations (see step_flop)")
    parser.add_argument("--minutes", type=float, help="end early: the schedule is squeezed into this wall time")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--save-every", type=float, default=5.0, metavar="MINUTES")
    parser.add_argument("--out", type=Path, default=checkpoint.CHECKPOINT)
    parser.add_argument("--runs", type=Path, default=RUNS, help="where the state for --resume is kept")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --runs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    train(parse())
