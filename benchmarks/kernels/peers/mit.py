"""MIT's Block-Sparse-Attention (the kernel of the paper's own code), blocks of 128, one mask per head."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.inputs import KeptBlocks
from benchmarks.kernels.peers import Peer, Run


def _make(call: KeptBlocks) -> Run:
    from block_sparse_attn import block_sparse_attn_func

    tokens, device = call.shape.tokens, call.q.device
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (call.q, call.k, call.v))
    lengths = torch.tensor([0, tokens], dtype=torch.int32, device=device)
    kinds = torch.ones(call.shape.heads, dtype=torch.int32, device=device)

    def attend() -> Tensor:
        out: Tensor = block_sparse_attn_func(
            q, k, v, lengths, lengths, kinds, None, call.keep, tokens, tokens, 0.0, softmax_scale=call.scale
        )
        return out.transpose(0, 1)[None]

    return attend


_NOTE = "tokens in block order already; turns its mask into lists at every call, which is part of the time"
PEERS = (Peer("MIT Block-Sparse-Attention", "block_sparse_attn", "kept", (128, 128), _make, note=_NOTE),)
