"""Peers: other people's kernels, called through their public functions and compared before they are timed.

Nothing of a peer is part of this repository. Each is a package of its own that the bench looks for and leaves out,
counted and named, where it is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks.kernels.inputs import KeptBlocks

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Peer:
    """One function of a peer.

    Attributes:
        name: as in the results.
        package: top-level import it needs.
        selects: `kept` computes exactly our kept blocks, `own` chooses blocks itself, `dense` computes all.
        blocks: (query, key) block sizes of the selection it is given.
        make: gets everything ready that a caller would do once per selection, and returns what is timed; its output is
            (1, H, L, D) in block order (`own`: in the host's order).
        own_density: for `own`: the share of token pairs that what `make` returned computes exactly.
        all_exact: for `own`: the same kernel with every block computed exactly, which must give dense attention.
        limit: what `all_exact` may be off by.
        note: what a reader must know of the figures.
        dims: head sizes it takes, of those the bench has.
        needs_cuda: False for those that also run on a CPU, if slowly.
        refuses: why it cannot run on a device although it is installed; it may import the package.
    """

    name: str
    package: str
    selects: Literal["kept", "own", "dense"]
    blocks: tuple[int, int]
    make: Callable[[KeptBlocks], Run]
    own_density: Callable[[KeptBlocks], float] | None = None
    all_exact: Callable[[KeptBlocks], Run] | None = None
    limit: float | None = None
    note: str = ""
    needs_cuda: bool = True
    dims: tuple[int, ...] = (64, 128)
    refuses: Callable[[torch.device], str | None] = lambda device: None

    @property
    def kind(self) -> Literal["dense", "peer"]:
        return "dense" if self.selects == "dense" else "peer"

    @property
    def by(self) -> str:
        return "" if self.selects == "dense" else f"{self.blocks[0]}/{self.blocks[1]}"


# Module and attribute (a tuple of peers) of each package's adapter, in the order they are worth timing.
PEERS = {
    "comfy_kitchen": "benchmarks.kernels.peers.sol:PEERS",
    "FlexAttention": "benchmarks.kernels.peers.flex:PEERS",
    "flash-attn-4": "benchmarks.kernels.peers.flash4:PEERS",
    "FlashAttention-3": "benchmarks.kernels.peers.flash3:PEERS",
    "cuDNN frontend": "benchmarks.kernels.peers.cudnn_frontend:PEERS",
    "MIT Block-Sparse-Attention": "benchmarks.kernels.peers.mit:PEERS",
    "FlashInfer": "benchmarks.kernels.peers.flashinfer_sparse:PEERS",
}


def load(target: str) -> tuple[Peer, ...]:
    """The peers at `module:attribute`. Loading an adapter imports nothing of the peer itself."""
    module, attribute = target.split(":")
    peers: tuple[Peer, ...] = getattr(importlib.import_module(module), attribute)
    return peers


def missing(peer: Peer, device_type: str) -> str | None:
    """Why a peer cannot be tried, as far as can be told without importing it."""
    if importlib.util.find_spec(peer.package) is None:
        return f"not importable: {peer.package} is not installed"
    if peer.needs_cuda and device_type != "cuda":
        return f"its kernels need a CUDA device, this is {device_type}"
    return None
