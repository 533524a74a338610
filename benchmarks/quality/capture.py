"""Reaching into a diffusers Wan transformer: replace its self-attention by a function, or copy what goes into it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor

from demo.sample import sample
from draftattention.draftattn_core import TokenGrid
from draftattention.nodes.demo_prompts import PROMPTS

# (q, k, v, layer, step) -> out, all (B, heads, L, D); step counts noise levels from 0 in order of appearance.
AttentionFunction = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]


@dataclass(frozen=True)
class CapturedCall:
    """One self-attention call of a sampling run: post-RoPE q, k and v, (1, heads, L, D) float32, and where it was."""

    q: Tensor
    k: Tensor
    v: Tensor
    grid: TokenGrid
    seed: int
    step: int
    layer: int


def prompt_of(seed: int) -> str:
    """Seeds take turns in the prompts."""
    return PROMPTS[seed % len(PROMPTS)]


def dense_attention(q: Tensor, k: Tensor, v: Tensor, layer: int, step: int) -> Tensor:
    """What the model does by itself."""
    return F.scaled_dot_product_attention(q, k, v)


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Wan's RoPE on x (B, L, heads, D): pairs of neighbouring channels turn together."""
    cosines, sines = rotary
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cosines[..., 0::2], sines[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


class _Replaced:
    """Attention processor that computes Wan's q, k, v and leaves the attention itself to a function."""

    def __init__(self, function: AttentionFunction, layer: int, step: Callable[[], int]) -> None:
        self.function, self.layer, self.step = function, layer, step

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        k = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        v = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            q, k = _rotate(q, rotary_emb), _rotate(k, rotary_emb)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = self.function(q, k, v, self.layer, self.step()).transpose(1, 2).flatten(2).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](out))


@contextmanager
def attention_replaced(model: WanTransformer3DModel, function: AttentionFunction) -> Iterator[None]:
    """Within the context every self-attention of `model` is `function`; afterwards the processors are as before.

    One context serves one sampling run: steps are told apart by their timestep.
    """
    levels: dict[float, int] = {}
    current = [0]

    def note_step(module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        assert isinstance(timestep, Tensor)
        current[0] = levels.setdefault(float(timestep.flatten()[0]), len(levels))

    before = [block.attn1.processor for block in model.blocks]
    hook = model.register_forward_pre_hook(note_step, with_kwargs=True)
    for layer, block in enumerate(model.blocks):
        block.attn1.processor = _Replaced(function, layer, lambda: current[0])
    try:
        yield
    finally:
        hook.remove()
        for block, processor in zip(model.blocks, before, strict=True):
            block.attn1.processor = processor


def capture(
    model: WanTransformer3DModel,
    prompt: str,
    grid: TokenGrid,
    *,
    seed: int,
    steps: int,
    at_steps: Collection[int],
    layers: Collection[int],
    skip: Collection[tuple[int, int]] = (),
    on_call: Callable[[CapturedCall], None] | None = None,
) -> list[CapturedCall]:
    """Run the demo's sampler dense, without guidance, and keep the calls of the given steps and layers.

    The run ends after the last step that is asked for.

    Args:
        skip: (step, layer) pairs not wanted.
        on_call: gets each call as soon as it is there; none is returned then.
    """
    wanted = {(step, layer) for step in at_steps for layer in layers} - set(skip)
    if not wanted:
        return []
    last = max(step for step, _ in wanted)
    calls: list[CapturedCall] = []

    def keep(q: Tensor, k: Tensor, v: Tensor, layer: int, step: int) -> Tensor:
        if (step, layer) in wanted:
            copies = (x.detach().float().contiguous() for x in (q, k, v))
            (on_call or calls.append)(CapturedCall(*copies, grid=grid, seed=seed, step=step, layer=layer))
        return dense_attention(q, k, v, layer, step)

    class _Enough(Exception):
        pass

    def after_step(step: int, *_: object) -> None:
        if step >= last:
            raise _Enough

    with attention_replaced(model, keep), suppress(_Enough):
        sample(model, prompt, grid.as_tuple(), steps=steps, seed=seed, cfg=1.0, callback=after_step)
    return calls
