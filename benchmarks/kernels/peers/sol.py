"""comfy_kitchen.sol_attn, the kernel behind ComfyUI's own sparse attention, at our executed density.

It cuts the host's order into strips of 64 tokens and keeps, for each strip of queries, the share of key strips that
score highest, the strip itself and its two neighbours; text is computed exactly on both sides, as ours is. What it
keeps is counted here from its documented rule on the same block means, so that the share can be set to meet ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.inputs import KeptBlocks
from benchmarks.kernels.peers import Peer, Run

BLOCK = 64
# INT8 products: its authors state a cosine of about 0.999 against full precision, which is an error of 4.5e-2.
_INT8 = 8e-2


def _means(x: Tensor) -> Tensor:
    """(H, strips, D) float32 means of x (1, L, H, D) over strips of 64 tokens."""
    tokens, strips = x.shape[1], -(-x.shape[1] // BLOCK)
    sums = torch.zeros(x.shape[2], strips, x.shape[3], device=x.device)
    strip = torch.arange(tokens, device=x.device) // BLOCK
    for head in range(x.shape[2]):
        sums[head].index_add_(0, strip, x[0, :, head].float())
    return sums / torch.bincount(strip)[:, None]


class _Strips:
    """What the rule keeps for a number of strips per row."""

    def __init__(self, call: KeptBlocks) -> None:
        q, k, _ = (x.transpose(1, 2) for x in call.host)
        tokens, video = call.shape.tokens, call.shape.layout.grid.tokens
        self.strips = -(-tokens // BLOCK)
        self.text = (video // BLOCK, self.strips) if call.shape.extra else (0, 0)
        self._sizes = call.sizes(BLOCK).to(q.device, torch.float32)
        self._tokens = tokens
        scores = _means(q) @ _means(k).transpose(1, 2)
        scores[:, :, slice(*self.text)] = -torch.inf
        self._order = scores.argsort(-1, descending=True)
        index = torch.arange(self.strips, device=q.device)
        is_text = (index >= self.text[0]) & (index < self.text[1])
        self._always = ((index[:, None] - index).abs() <= 1) | is_text | is_text[:, None]

    @property
    def choosable(self) -> int:
        return self.strips - (self.text[1] - self.text[0])

    def density(self, count: int) -> float:
        """Share of token pairs computed exactly when each row keeps its `count` best strips."""
        kept = self._always.expand(self._order.shape[0], -1, -1).clone()
        kept.scatter_(2, self._order[:, :, :count], True)
        pairs = (kept.float() @ self._sizes) @ self._sizes
        return float(pairs.mean()) / float(self._tokens) ** 2

    def meeting(self, density: float) -> int:
        """The number of strips per row whose density is nearest."""
        low, high = 1, max(1, self.choosable - 1)
        while low < high:
            middle = (low + high) // 2
            if self.density(middle) < density:
                low = middle + 1
            else:
                high = middle
        below = max(1, low - 1)
        return min((below, low), key=lambda count: abs(self.density(count) - density))


def _strips_of(call: KeptBlocks) -> tuple[_Strips, int]:
    strips = _Strips(call)
    return strips, strips.meeting(call.executed())


def _make(call: KeptBlocks) -> Run:
    from comfy_kitchen import sol_attn

    strips, count = _strips_of(call)
    if count >= strips.choosable:
        # A tiny call: it takes no share of 1.
        return _all_exact(call)
    q, k, v = (x.transpose(1, 2) for x in call.host)
    text = list(strips.text)

    def attend() -> Tensor:
        out: Tensor = sol_attn(
            q, k, v, scale=call.scale, sink_blocks=text, sink_q=text, topk_ratio=count / strips.choosable
        )
        return out.transpose(1, 2)

    return attend


def _all_exact(call: KeptBlocks) -> Run:
    from comfy_kitchen import sol_attn

    q, k, v = (x.transpose(1, 2) for x in call.host)
    everything = [0, -(-call.shape.tokens // BLOCK)]

    def attend() -> Tensor:
        out: Tensor = sol_attn(q, k, v, scale=call.scale, sink_blocks=everything, sink_q=everything)
        return out.transpose(1, 2)

    return attend


def _density(call: KeptBlocks) -> float:
    strips, count = _strips_of(call)
    return strips.density(count)


def _refuses(device: torch.device) -> str | None:
    """On a GPU its eager reference would run in the place of a fused kernel, which is no peer."""
    if device.type == "cpu":
        return None
    import comfy_kitchen

    there = getattr(comfy_kitchen, "sol_attn_is_available", None)
    if there is None:
        return "this comfy_kitchen has no sol_attn"
    return None if there(device) else "comfy_kitchen has no fused sol_attn for this device"


_NOTE = "whole call, its own selection in strips of 64, INT8"
PEERS = (
    Peer(
        "comfy_kitchen.sol_attn",
        "comfy_kitchen",
        "own",
        (128, 64),
        _make,
        own_density=_density,
        all_exact=_all_exact,
        limit=_INT8,
        note=_NOTE,
        needs_cuda=False,
        dims=(128,),
        refuses=_refuses,
    ),
)
