"""flash-attn-4 (CuTe DSL): dense, and block-sparse with our kept blocks as its lists of full blocks.

Its kernel takes the lists from the end and hides keys past the sequence in the first block it takes, so ascending
lists are what it needs where the last block is short.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.inputs import KeptBlocks
from benchmarks.kernels.peers import Peer, Run


def _dense(call: KeptBlocks) -> Run:
    from flash_attn.cute import flash_attn_func

    q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))

    def attend() -> Tensor:
        out: Tensor = flash_attn_func(q, k, v, softmax_scale=call.scale)[0]
        return out.transpose(1, 2)

    return attend


def _sparse(call: KeptBlocks) -> Run:
    from flash_attn.cute import flash_attn_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    lists, counts = call.lists()
    blocks = BlockSparseTensorsTorch(
        mask_block_cnt=torch.zeros_like(counts),
        mask_block_idx=torch.zeros_like(lists[..., :1]),
        full_block_cnt=counts,
        full_block_idx=lists,
        block_size=(call.shape.q_block, call.shape.k_block),
    )
    q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))

    def attend() -> Tensor:
        out: Tensor = flash_attn_func(q, k, v, softmax_scale=call.scale, block_sparse_tensors=blocks)[0]
        return out.transpose(1, 2)

    return attend


_NOTE = "kernel alone, tokens in block order already, lists made before"
PEERS = (
    Peer("flash-attn-4", "flash_attn", "dense", (128, 128), _dense),
    Peer("flash-attn-4 block-sparse", "flash_attn", "kept", (128, 128), _sparse, note=_NOTE),
    Peer("flash-attn-4 block-sparse", "flash_attn", "kept", (128, 64), _sparse, note=_NOTE),
)
