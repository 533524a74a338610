"""cuDNN frontend's block-sparse attention (CuTe DSL), with query and key blocks of one size: 128, or 64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.kernels.inputs import KeptBlocks
from benchmarks.kernels.peers import Peer, Run


def _make(call: KeptBlocks) -> Run:
    from cudnn.block_sparse_attention import block_sparse_attention_forward

    block, tokens = call.shape.k_block, call.shape.tokens
    lists, counts = call.lists()
    # Each query block as as many smaller ones as it takes, all with its list: the same pairs.
    repeats = call.shape.q_block // block
    rows = -(-tokens // block)
    lists, counts = (x.repeat_interleave(repeats, 2)[:, :, :rows].contiguous() for x in (lists, counts))
    sizes = call.sizes(block).to(call.q.device, torch.int32)
    # Its kernel for blocks of 64 takes whole query blocks only.
    q = pad(call.q, (0, 0, 0, -tokens % block)) if block == 64 else call.q

    def attend() -> Tensor:
        found = block_sparse_attention_forward(
            q,
            call.k,
            call.v,
            lists,
            block_sizes=sizes,
            q2k_block_nums=counts,
            sparse_block_size=block,
            softmax_scale=call.scale,
            layout="bhsd",
        )
        out: Tensor = found["o_tensor"]
        return out[:, :, :tokens]

    return attend


_NOTE = "kernel alone, tokens in block order already, lists made before"
PEERS = (
    Peer("cuDNN frontend block-sparse", "cudnn", "kept", (128, 128), _make, note=_NOTE),
    Peer("cuDNN frontend block-sparse", "cudnn", "kept", (128, 64), _make, note=_NOTE + "; its query blocks are of 64"),
)
