"""What every backend is asked to compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry.layout import LayoutTables
from ..method.tail.expand import Tail


class BackendFailure(RuntimeError):
    """A backend that accepted a call turned out to be unable to compute it; it refuses such calls from now on."""


class Listed(NamedTuple):
    """A selection as kernels walk it, contiguous.

    Attributes:
        lists: (B, H, q blocks, k blocks) int32, ascending key blocks of each query block.
        counts: (B, H, q blocks) int32, how many entries of each list are meant.
        words: (B, H, q blocks, ceil(k blocks / 32)) int32, the map as bits, lowest first.
    """

    lists: Tensor
    counts: Tensor
    words: Tensor


@dataclass(frozen=True)
class AttendRequest:
    """Attention over kept block pairs, with a tail for the skipped ones.

    Attributes:
        q, k, v: (B, H, L, D) in the host's token order, any strides.
        tables: index tables of the layout, on the device of q.
        keep: (B, H, q blocks, k blocks) bool, extra-token blocks included; extra blocks are always kept.
        tail: expansion of the video key blocks, or None to leave skipped blocks out.
        key_bias: (B or 1, extra tokens) float32 added to the logits of the extra tokens (-inf hides one), or None.
        scale: factor on q.k.
        counts: (B, H, q blocks) int32, how many key blocks each query block keeps, if they are at hand.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tables: LayoutTables
    keep: Tensor
    tail: Tail | None
    key_bias: Tensor | None
    scale: float
    counts: Tensor | None = None


def new_output(q: Tensor) -> Tensor:
    """Uninitialised (B, H, L, D) output laid out so that (B, L, H * D), what hosts want, is a view of it."""
    batch, heads, length, dim = q.shape
    return torch.empty(batch, length, heads, dim, dtype=q.dtype, device=q.device).transpose(1, 2)
