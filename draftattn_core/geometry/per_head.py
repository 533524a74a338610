"""Small per-head values from the host to the device: once, and without making the host wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from .device_cache import DeviceCache, is_capturing

# A few thousand tensors: every layer of a model may have its own gains, densities and tails.
_SENT = DeviceCache(limit_bytes=2 << 20)


def per_head(values: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(len(values),) tensor on `device` (with its number), to be read only: calls with the same values share it.

    A plain `torch.tensor(list, device=...)` would stall a CUDA stream; new values go through pinned memory instead. A
    CUDA graph must not: its replays would read that memory when others use it. New values are written by kernels there,
    one for each run of equal ones, so make the call once before it is captured (`DeviceCache`).
    """
    wanted = tuple(values)

    def make() -> Tensor:
        if len(set(wanted)) == 1:
            return torch.full((len(wanted),), wanted[0], dtype=dtype, device=device)
        if is_capturing(device):
            runs = [(value, len(list(run))) for value, run in groupby(wanted)]
            return torch.cat([torch.full((length,), value, dtype=dtype, device=device) for value, length in runs])
        pinned = device.type == "cuda"
        # What is not pinned must arrive before it is freed here.
        return torch.tensor(wanted, dtype=dtype, pin_memory=pinned).to(device, non_blocking=pinned)

    return _SENT.get((wanted, dtype, device), device, make)
