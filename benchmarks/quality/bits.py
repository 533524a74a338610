"""`python -m benchmarks.quality.bits`: what INT8 scores add to the error of sparse attention, on the CPU, in a minute.

Calls of the tiny model and structured ones at a density of 0.2, in bfloat16 and float16: error of each head beside
exact attention in 16 bits and in 8 (`run.bits`), and which heads would stay at 16. Prints a Markdown table and
writes it to `OUT/bits.md`, with --fp8 to `OUT/bits_fp8.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.quality.capture import capture, prompt_of
from demo import checkpoint
from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.run.bits import MOST_ADDED, MOST_FACTOR, BitsErrors, bits_errors

DENSITY = 0.2
GRID = TokenGrid(6, 16, 24)
STEPS, AT_STEPS, SEED = 8, (1, 4, 7), 3
HEADS, DIM = 8, 128


class Inputs(NamedTuple):
    """q, k and v (B, H, L, D) under a name."""

    name: str
    q: Tensor
    k: Tensor
    v: Tensor


def tiny_calls() -> Iterator[Inputs]:
    """Captured calls of the tiny model, all layers at some steps."""
    model = checkpoint.load()
    layers = range(len(model.blocks))
    calls = capture(model, prompt_of(SEED), GRID, seed=SEED, steps=STEPS, at_steps=AT_STEPS, layers=layers)
    for dtype in (torch.bfloat16, torch.float16):
        for call in calls:
            yield Inputs(f"tiny model, {short(dtype)}", *(x.to(dtype) for x in (call.q, call.k, call.v)))


def structured_calls() -> Iterator[Inputs]:
    """Waves over the video with noise: plain, with channels far from zero, with large ones, at float16's end."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.meshgrid(*(torch.linspace(0, 1, n) for n in GRID.as_tuple()), indexing="ij")
    place = torch.stack(axes, -1).view(-1, 3)

    def waves(noise: float) -> Tensor:
        frequency = torch.randn(1, HEADS, 3, DIM, generator=generator) * 4
        phase = torch.rand(1, HEADS, 1, DIM, generator=generator) * 6.3
        return torch.sin(place @ frequency + phase) + noise * torch.randn(
            1, HEADS, GRID.tokens, DIM, generator=generator
        )

    q, k, v = waves(0.5), waves(0.5), waves(0.5)
    channels = torch.arange(DIM)
    large = torch.where(channels % 32 == 3, 30.0, 1.0)
    # A channel that is large in K is small in Q where models are trained: logits stay what they were.
    yield from both("waves", q, k, v)
    yield from both("waves, 4 channels of K offset by 30", q, k + torch.where(channels % 32 == 3, 30.0, 0.0), v)
    yield from both("waves, 4 channels of K 30 times as large, of Q as small", q / large, k * large, v)
    yield from both("waves, 4 channels of K 30 times as large", q / 8, k * large, v)
    yield Inputs("waves, K and V of tens of thousands, float16", *(x.half() for x in (q / 1e4, k * 1e4, v * 1e4)))


def both(name: str, q: Tensor, k: Tensor, v: Tensor) -> Iterator[Inputs]:
    for dtype in (torch.bfloat16, torch.float16):
        yield Inputs(f"{name}, {short(dtype)}", *(x.to(dtype) for x in (q, k, v)))


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def errors_of(inputs: Inputs, rows: int, fp8: bool = False) -> BitsErrors:
    """Of a call at `DENSITY` with the default policy."""
    layout = Layout(GRID)
    request = attend(inputs.q, inputs.k, inputs.v, layout, Policy(density=DENSITY), backend="torch").request
    return bits_errors(request, rows=rows, fp8_values=fp8)


def table(calls: Iterator[Inputs], rows: int, fp8: bool = False) -> str:
    """A Markdown table with a row for each name."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for inputs in calls:
        errors = errors_of(inputs, rows, fp8)
        found.setdefault(inputs.name, []).append((errors.sixteen.flatten(), errors.eight.flatten()))
    lines = [
        "| calls | heads | error, 16 bits | added, median | added, most | stay at 16 |",
        "|---|---|---|---|---|---|",
    ]
    for name, pairs in found.items():
        sixteen, eight = (torch.cat(each) for each in zip(*pairs, strict=True))
        bits = BitsErrors(sixteen[None], eight[None]).bits()
        added = eight - sixteen
        figures = f"{sixteen.median():.4f} | {added.median():+.4f} | {added.max():+.4f}"
        lines.append(f"| {name} | {len(bits)} | {figures} | {bits.count(16)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.bits", description=__doc__)
    parser.add_argument("--rows", type=int, default=256, help="query rows sampled of each call")
    parser.add_argument("--fp8", action="store_true", help="weights and values in FP8 as well")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality"))
    options = parser.parse_args()
    reduced = "INT8 scores, FP8 weights and values" if options.fp8 else "INT8 scores"
    text = "\n".join(
        [
            f"{reduced}; CPU, torch {torch.__version__}. Density {DENSITY}, grid {GRID}, blocks 128/64, tail linear1, "
            f"{options.rows} rows of each call; tiny model at steps {', '.join(map(str, AT_STEPS))} of {STEPS}, all "
            f"layers, seed {SEED}. Relative L2 error beside exact attention.",
            f"A head stays at 16 bits beyond {MOST_FACTOR} times its error and {MOST_ADDED} more.",
            "",
            table(chain(tiny_calls(), structured_calls()), options.rows, options.fp8),
            "",
        ]
    )
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / ("bits_fp8.md" if options.fp8 else "bits.md")).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
