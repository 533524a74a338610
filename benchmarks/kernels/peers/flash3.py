"""FlashAttention-3, dense."""

from __future__ import annotations

from torch import Tensor

from benchmarks.kernels.inputs import KeptBlocks
from benchmarks.kernels.peers import Peer, Run


def _dense(call: KeptBlocks) -> Run:
    from flash_attn_interface import flash_attn_func

    q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))

    def attend() -> Tensor:
        found = flash_attn_func(q, k, v, softmax_scale=call.scale)
        # Older releases return the log-sum-exp beside the output.
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out.transpose(1, 2)

    return attend


PEERS = (Peer("FlashAttention-3", "flash_attn_interface", "dense", (128, 128), _dense),)
