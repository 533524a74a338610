"""``python -m benchmarks.limits``: what sparsity can give at best, and what ours should, by arithmetic alone.

Multiplications of one evaluation of a model: its weights times the tokens that pass through them, and its attention.
A perfect sparse kernel computes a pair as fast as the best dense call does and nothing else; ours may take `ATTEND`
times that, and has its tail, `prepare` and `select` besides. Nothing here is measured. Norms, RoPE and modulation are
left out, and so is what a run pays once: real factors are smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from draftattention.draftattn_core.method.policy import TailName
from draftattention.draftattn_core.run.schedule import PRESETS, preset
from draftattention.draftattn_core.run.speed import SPEEDS, dense_evaluations

# Limits that our kernels are held to: time of `attend` over that of its products in the best dense call; `prepare` and
# `select` as a share of the dense call.
ATTEND, PREPARATION = 1.15, 0.03
# Rate of products with weights over that of the best dense attention: alike, and as far apart as others measured on
# Hopper (matmul 770 to 800 TFLOP/s, attention 600 to 680). The slower attention is, the more there is to gain.
RATES = (1.0, 1.25)
STEPS = 20
# Products of a pooled key; a listed key has two.
_PRODUCTS: dict[TailName, int] = {"none": 0, "mean": 2, "linear0": 2, "linear1": 4, "linear2": 6}


@dataclass(frozen=True)
class Sizes:
    """A video model's transformer, as published.

    Attributes:
        width: of its tokens; `inner`: of its feed-forward.
        layers: of self-attention over the video.
        video, text: tokens of one evaluation that pass through weights; text only as `joint` says.
        attended: tokens of a self-attention call.
        head: size.
        joint: whether text has weights of its own like the video's (HunyuanVideo), or is read by cross-attention (Wan).
    """

    name: str
    width: int
    inner: int
    layers: int
    video: int
    text: int
    attended: int
    joint: bool
    head: int = 128

    @property
    def linear(self) -> float:
        """Multiplications and additions with weights, one evaluation."""
        own = 4 * self.width**2 + 2 * self.width * self.inner
        # Queries and output of the cross-attention are the video's, its keys and values the text's.
        video, text = (own, own) if self.joint else (own + 2 * self.width**2, 2 * self.width**2)
        return 2.0 * self.layers * (video * self.video + text * self.text)

    @property
    def attention(self) -> float:
        """Of dense self-attention, one evaluation."""
        return 4.0 * self.attended**2 * self.width * self.layers

    def share(self, rates: float = 1.0) -> float:
        """Attention's share of the time of a dense evaluation."""
        return self.attention / (self.attention + self.linear / rates)


MODELS = (
    Sizes("Wan 14B 720p", 5120, 13_824, 40, 75_600, 512, 75_600, joint=False),
    Sizes("HunyuanVideo 1.5 720p", 2048, 8192, 54, 111_600, 1985, 112_600, joint=True),
)
# What users often sample, for the README.
OFTEN = (
    Sizes("Wan 2.2 5B, 1280x704, 121 frames", 3072, 14_336, 30, 27_280, 512, 27_280, joint=False),
    Sizes("Wan 2.1 or 2.2 14B, 832x480, 81 frames", 5120, 13_824, 40, 32_760, 512, 32_760, joint=False),
    replace(MODELS[0], name="Wan 2.1 or 2.2 14B, 1280x720, 81 frames"),
    Sizes("HunyuanVideo, 1280x720, 129 frames", 3072, 12_288, 60, 118_800, 256, 119_056, joint=True),
    replace(MODELS[1], name="HunyuanVideo 1.5, 1280x720, 121 frames"),
)


def tail_share(
    video: int, attended: int, head: int, tail: TailName = "linear1", k_block: int = 64, density: float = 0.0
) -> float:
    """Products of a tail as a share of those of a dense call: the pooled keys of the blocks that are skipped at a
    density of the video's pairs, and the average matrix."""
    matrix = head / 2 if tail.startswith("linear") else 0.0
    return ((1.0 - density) * math.ceil(video / k_block) * _PRODUCTS[tail] / 2 + matrix) / attended


def perfect(density: float) -> float:
    """Time of a sparse call over a dense one, at best."""
    return density


def ours(density: float, tail: float) -> float:
    """Time of our sparse call over a dense one within our limits; dense calls are dense. `tail`: see `tail_share`."""
    return 1.0 if density >= 1.0 else ATTEND * (density + tail) + PREPARATION


def factor(
    model: Sizes, densities: Sequence[float | None], *, held: bool, rates: float = 1.0, answered: float = 0.0
) -> float:
    """Time of a dense run over that of a sparse one.

    Args:
        densities: of the run's evaluations, 1 for dense ones, None for those that are not computed.
        held: whether within our limits, or by a perfect kernel.
        rates: see `RATES`.
        answered: share of the evaluations with a density below 1 that a step cache answers, which costs nothing.
    """
    share = model.share(rates)
    spent = 0.0
    for density in densities:
        if density is None:
            continue
        tail = tail_share(model.video, model.attended, model.head, density=density)
        attention = ours(density, tail) if held else perfect(density)
        computed = 1.0 if density >= 1.0 else 1.0 - answered
        spent += computed * (1.0 - share + share * attention)
    return len(densities) / spent


def of_preset(name: str, steps: int = STEPS) -> list[float]:
    """Density of every evaluation of a preset's run."""
    curve = preset(name, steps).curve
    return [curve(step / steps) for step in range(steps)]


def of_speed(name: str, steps: int = STEPS) -> list[float]:
    """Density of every evaluation of a speed's run, before forecasts answer any."""
    first = dense_evaluations(steps)
    return [1.0] * first + [SPEEDS[name].density] * (steps - first)


def as_planned(name: str, steps: int = STEPS) -> list[float | None]:
    """The same, None where a forecast answers."""
    planned = SPEEDS[name].skip().planned_steps(steps)
    return [density if step in planned else None for step, density in enumerate(of_speed(name, steps))]


def target(model: str, name: str = "balanced") -> float:
    """What a whole run at a preset should be faster by: ours within our limits, rounded down to a twentieth."""
    sizes = next(one for one in MODELS if one.name == model)
    return math.floor(20.0 * factor(sizes, of_preset(name), held=True)) / 20.0


# Multiplications per second of the parts of a GeForce RTX 4090, as its maker publishes them (Ada whitepaper, dense
# matrices, TFLOP/s or TOP/s): which of them a kernel uses decides more there than how it is written.
ADA = {"bf16": 165.2, "fp16, sums in fp16": 330.3, "int8": 660.6, "fp8, sums in fp16": 660.6}
_SAGE = "SageAttention2++, dense"
# Parts that the two products of attention run on.
FORMS = {
    _SAGE: ("int8", "fp8, sums in fp16"),
    "bf16": ("bf16", "bf16"),
    "INT8 scores, fp16 sums": ("int8", "fp16, sums in fp16"),
}


def rate(form: str) -> float:
    """Of both products together."""
    return 2.0 / sum(1.0 / ADA[part] for part in FORMS[form])


def even(form: str) -> float:
    """The density at which a perfect sparse kernel of a form takes as long as dense SageAttention2++."""
    return rate(form) / rate(_SAGE)


def page() -> str:
    """The tables of docs/kernels.md."""
    columns = ("perfect, alone", "ours, alone", "perfect, half answered", "ours, half", "ours, 2 of 3", "as planned")
    lines = [f"| {STEPS} steps, times dense | {' | '.join(columns)} |", "|" + "---|" * (1 + len(columns))]
    for model in MODELS:
        shares = " to ".join(f"{model.share(rates):.2f}" for rates in RATES)
        lines.append(f"| **{model.name}** (attention {shares}) | | | | | | |")
        rows = {f"preset {name}": of_preset(name) for name in PRESETS}
        rows |= {f"speed {name}": of_speed(name) for name in SPEEDS}
        for name, densities in rows.items():
            # What is dense by plan has no sparse evaluations to answer or to be faster in.
            dense = all(density >= 1.0 for density in densities)
            cells = [
                "-"
                if dense
                else " to ".join(f"{factor(model, densities, held=held, rates=r, answered=part):.2f}" for r in RATES)
                for held, part in ((False, 0.0), (True, 0.0), (False, 0.5), (True, 0.5), (True, 2 / 3))
            ]
            kind, word = name.split()
            if kind == "speed":
                planned = as_planned(word)
                cells.append(" to ".join(f"{factor(model, planned, held=True, rates=r):.2f}" for r in RATES))
            else:
                cells.append("-")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| one call, times dense | " + " | ".join(f"{d:g}" for d in _DENSITIES) + " |"]
    lines += ["|" + "---|" * (1 + len(_DENSITIES))]
    for model in MODELS:
        tails = [tail_share(model.video, model.attended, model.head, density=density) for density in _DENSITIES]
        times = [f"{1 / perfect(d):.1f} / {1 / ours(d, tail):.1f}" for d, tail in zip(_DENSITIES, tails)]
        points = [f"{100 * tail:.1f} points" for tail in tails]
        lines.append(f"| {model.name}, perfect / ours | {' | '.join(times)} |")
        lines.append(f"| its tail's products, `linear1` | {' | '.join(points)} |")
    lines += ["", "| RTX 4090, by published peaks | TFLOP/s | as fast as dense SageAttention2++ at density |"]
    lines += ["|---|---|---|"]
    lines += [f"| perfect kernel, {form} | {rate(form):.0f} | {even(form):.2f} |" for form in FORMS if form != _SAGE]
    return "\n".join(lines) + "\n"


_DENSITIES = (0.1, 0.2, 0.3)


def tokens_table() -> str:
    """Tokens of common videos, and attention's part of a dense evaluation's multiplications."""
    lines = ["| model, size, frames | tokens | attention's part of the work |", "|---|---|---|"]
    lines += [f"| {sizes.name} | {sizes.video:,} | {sizes.share():.2f} |" for sizes in OFTEN]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
