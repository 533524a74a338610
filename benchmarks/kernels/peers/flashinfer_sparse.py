"""FlashInfer's variable block-sparse wrapper, the one that takes a mask per head."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.inputs import KeptBlocks
from benchmarks.kernels.peers import Peer, Run

_WORKSPACE_BYTES = 128 << 20


def _make(call: KeptBlocks) -> Run:
    import flashinfer

    device, heads = call.q.device, call.shape.heads
    workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = flashinfer.VariableBlockSparseAttentionWrapper(workspace)
    rows, columns = (
        call.sizes(block).to(device, torch.int32).expand(heads, -1).contiguous()
        for block in (call.shape.q_block, call.shape.k_block)
    )
    wrapper.plan(
        call.keep[0],
        rows,
        columns,
        heads,
        heads,
        call.shape.dim,
        sm_scale=call.scale,
        q_data_type=call.q.dtype,
    )

    def attend() -> Tensor:
        out: Tensor = wrapper.run(call.q[0], call.k[0], call.v[0])
        return out[None]

    return attend


_NOTE = "tokens in block order already; its plan(), which runs on the host for every mask, is not timed"
PEERS = (Peer("FlashInfer block-sparse", "flashinfer", "kept", (128, 64), _make, note=_NOTE),)
