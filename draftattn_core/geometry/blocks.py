"""Block-wise views of host tensors: tokens into block order, and means over blocks.

Everything here works a few heads at a time, so the temporary copies stay small beside Q, K and V.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.functional import pad

from .layout import BlockTable

_CHUNK_BYTES = 64 << 20
# Beside launching a few dozen kernels per group of heads, groups of one head would leave a GPU idle.
_DEVICE_CHUNK_BYTES = 256 << 20


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 where the input is: statistics never use the input's half precision."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Statistics stay in float32 where the host's model runs under autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def head_chunks(x: Tensor) -> Iterator[slice]:
    """Slices of the head axis of x (B, H, L, D) whose float32 copy takes about 64 MiB (256 MiB off the CPU)."""
    per_head = max(1, x.shape[0] * x.shape[2] * x.shape[3] * 4)
    step = max(1, (_CHUNK_BYTES if x.device.type == "cpu" else _DEVICE_CHUNK_BYTES) // per_head)
    for start in range(0, x.shape[1], step):
        yield slice(start, min(start + step, x.shape[1]))


def video_in_order(x: Tensor, perm: Tensor, table: BlockTable) -> Tensor:
    """Video tokens of x (B, h, L, D) in block order, cut into blocks: (B, h, g, block, D) in `statistics_dtype`.

    The slots past the end of the last block hold zeros; weigh by `table.counts`.
    """
    batch, heads, _, dim = x.shape
    tokens = table.bounds[table.video]
    blocks = x.index_select(2, perm[:tokens]).to(statistics_dtype(x))
    if tokens < table.video * table.size:
        blocks = pad(blocks, (0, 0, 0, table.video * table.size - tokens))
    return blocks.view(batch, heads, table.video, table.size, dim)


def block_means(x: Tensor, perm: Tensor, table: BlockTable) -> Tensor:
    """Means of x (B, H, L, D) over the real tokens of each video block: (B, H, g, D), float32 (float64 for float64)."""
    counts = table.counts[: table.video].to(statistics_dtype(x))[:, None]
    means = x.new_empty(x.shape[0], x.shape[1], table.video, x.shape[3], dtype=statistics_dtype(x))
    for part in head_chunks(x):
        means[:, part] = video_in_order(x[:, part], perm, table).sum(3) / counts
    return means


def centre(blocks: Tensor, means: Tensor, table: BlockTable) -> Tensor:
    """Subtract block means (B, h, g, D) from blocks (B, h, g, block, D) in place; empty slots stay zero."""
    blocks.sub_(means.unsqueeze(3))
    # Only the last video block can have empty slots.
    blocks[:, :, -1, table.bounds[table.video] - table.bounds[table.video - 1] :] = 0
    return blocks


def block_means_and_spread(x: Tensor, perm: Tensor, table: BlockTable) -> tuple[Tensor, Tensor]:
    """`block_means` and, from the same pass, each block's spread: mean |x - mean|^2, (B, H, g), same dtype."""
    counts = table.counts[: table.video].to(statistics_dtype(x))
    means = x.new_empty(x.shape[0], x.shape[1], table.video, x.shape[3], dtype=statistics_dtype(x))
    spread = means.new_empty(means.shape[:3])
    for part in head_chunks(x):
        blocks = video_in_order(x[:, part], perm, table)
        means[:, part] = blocks.sum(3) / counts[:, None]
        spread[:, part] = centre(blocks, means[:, part], table).square_().sum((3, 4)) / counts
    return means, spread
