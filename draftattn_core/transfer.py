"""Small per-head values from the host to the device without making the host wait for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def per_head(values: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(len(values),) tensor on `device`. A plain `torch.tensor(list, device=...)` would stall a CUDA stream."""
    if len(set(values)) == 1:
        return torch.full((len(values),), values[0], dtype=dtype, device=device)
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
