"""FlexAttention with our kept blocks as its block mask, compiled for the one shape: torch's own block-sparse kernel."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.inputs import KeptBlocks
from benchmarks.kernels.peers import Peer, Run
from benchmarks.kernels.plan import Shape


@functools.lru_cache(maxsize=1)
def _compiled(_shape: Shape) -> Any:
    """FlexAttention compiled for one shape and its blocks: all sizes known, as suits it best."""
    from torch.nn.attention.flex_attention import flex_attention

    # Else the limit on compilations of one function is soon reached.
    torch.compiler.reset()
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _make(call: KeptBlocks) -> Run:
    from torch.nn.attention.flex_attention import BlockMask

    lists, counts = call.lists()
    options: dict[str, Any] = {
        "BLOCK_SIZE": (call.shape.q_block, call.shape.k_block),
        "seq_lengths": (call.shape.tokens, call.shape.tokens),
        "compute_q_blocks": False,
    }
    known = inspect.signature(BlockMask.from_kv_blocks).parameters
    options = {name: value for name, value in options.items() if name in known}
    # Every kept block is a full one: nothing inside it is masked.
    none = torch.zeros_like(counts)
    mask = BlockMask.from_kv_blocks(none, torch.zeros_like(lists), counts, lists, **options)
    tiles = {"BLOCK_N": 64} if call.shape.k_block == 64 else None
    run = _compiled(call.shape)

    def attend() -> Tensor:
        out: Tensor = run(call.q, call.k, call.v, block_mask=mask, scale=call.scale, kernel_options=tiles)
        return out

    return attend


_NOTE = "kernel alone, tokens in block order already, block mask made before"
PEERS = (
    Peer("FlexAttention", "torch", "kept", (128, 64), _make, note=_NOTE),
    Peer("FlexAttention", "torch", "kept", (128, 128), _make, note=_NOTE),
)
