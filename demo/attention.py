"""How structured the model's self-attention is: `python -m demo.attention` prints the figure of the model card."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from tqdm import tqdm

from demo import checkpoint
from demo.sample import DEMO_GRID, sample

# (layer, q, k): post-RoPE queries and keys of one self-attention call, each (B, heads, L, D)
Captured = tuple[int, torch.Tensor, torch.Tensor]


class _Capture:
    """Attention processor that hands out post-RoPE q and k, then lets the original processor do the work."""

    def __init__(self, inner: object, layer: int, into: list[Captured]) -> None:
        self.inner, self.layer, self.into = inner, layer, into

    def __call__(
        self, attn: WanAttention, hidden_states: torch.Tensor, *args: object, **kwargs: object
    ) -> torch.Tensor:
        cosines, sines = kwargs["rotary_emb"] if "rotary_emb" in kwargs else args[2]
        pair = []
        for projection, norm in ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k)):
            value = norm(projection(hidden_states)).unflatten(2, (attn.heads, -1))
            even, odd = value.unflatten(-1, (-1, 2)).unbind(-1)
            cos, sin = cosines[..., 0::2], sines[..., 1::2]
            turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
            pair.append(turned.type_as(value).transpose(1, 2))
        self.into.append((self.layer, *pair))
        return self.inner(attn, hidden_states, *args, **kwargs)


@contextmanager
def captured_self_attention(model: WanTransformer3DModel) -> Iterator[list[Captured]]:
    """Within the context every self-attention call appends to the list; afterwards the processors are as before."""
    calls: list[Captured] = []
    before = [block.attn1.processor for block in model.blocks]
    for layer, block in enumerate(model.blocks):
        block.attn1.processor = _Capture(block.attn1.processor, layer, calls)
    try:
        yield calls
    finally:
        for block, processor in zip(model.blocks, before, strict=True):
            block.attn1.processor = processor


def tile_order(grid: tuple[int, int, int], tile: tuple[int, int, int]) -> torch.Tensor:
    """Permutation (L,) that makes every run of prod(tile) tokens one tile. The tile must divide the grid."""
    if any(size % part for size, part in zip(grid, tile, strict=True)):
        raise ValueError(f"the tile {tile} does not divide the grid {grid}")
    shape = [value for size, part in zip(grid, tile, strict=True) for value in (size // part, part)]
    return torch.arange(math.prod(grid)).view(shape).permute(0, 2, 4, 1, 3, 5).reshape(-1)


def top_block_mass(
    q: torch.Tensor, k: torch.Tensor, order: torch.Tensor, block: int, share: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax mass, (heads,) each, held by a share of the key blocks: those of true top mass, and the draft's choice.

    q, k: (1, heads, L, D) in raster order. Blocks are chosen per query block and head; the draft is the product of the
    block means. A random choice of the same size holds `share` on average.
    """
    q, k = (value[0, :, order].float() for value in (q, k))
    heads, length, channels = q.shape
    count = length // block
    kept = max(1, round(share * count))
    mean_q, mean_k = (value.view(heads, count, block, channels).mean(2) for value in (q, k))
    draft = mean_q @ mean_k.transpose(1, 2)
    true, drafted = torch.zeros(heads), torch.zeros(heads)
    for index, rows in enumerate(q.split(block, dim=1)):
        mass = (rows @ k.transpose(1, 2) / math.sqrt(channels)).softmax(-1).mean(1).view(heads, count, block).sum(-1)
        true += mass.topk(kept).values.sum(-1).cpu() / count
        drafted += mass.gather(1, draft[:, index].topk(kept).indices).sum(-1).cpu() / count
    return true, drafted


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prompts", nargs="+", default=["both", "pan"])
    arguments = parser.parse_args(argv)
    model = checkpoint.load(device=arguments.device)
    tile = (3, 4, 8)
    order = tile_order(DEMO_GRID, tile)
    rows: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    for prompt in arguments.prompts:
        with captured_self_attention(model) as calls, tqdm(total=arguments.steps, desc=prompt) as bar:

            def measure(step: int, steps: int, sigma: float, x0: torch.Tensor) -> None:
                bar.update()
                if step in {0, steps // 4, steps // 2, steps - 2}:
                    for layer, q, k in calls:
                        rows.setdefault((step, layer), []).append(top_block_mass(q, k, order, math.prod(tile)))
                calls.clear()

            sample(model, prompt, steps=arguments.steps, cfg=1.0, callback=measure)

    print(f"grid {DEMO_GRID}, tiles {tile} = {math.prod(tile)} tokens, {arguments.steps} Euler steps, no guidance")
    print("share of the softmax mass in 10 % of the key blocks (random blocks: 0.100)")
    print("step layer  true top (by head)         draft's choice (by head)")
    for (step, layer), values in sorted(rows.items()):
        true, drafted = (torch.stack(column).mean(0) for column in zip(*values, strict=True))
        columns = (" ".join(f"{value:.3f}" for value in side.tolist()) for side in (true, drafted))
        print(f"{step:4d} {layer:5d}  {'  '.join(columns)}")
    true, drafted = (torch.stack([pair[side] for values in rows.values() for pair in values]).mean() for side in (0, 1))
    print(f"mean: true top {true:.3f}, draft's choice {drafted:.3f}, random 0.100")


if __name__ == "__main__":
    main()
