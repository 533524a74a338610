"""What the layers of one evaluation did: sparse at a density, or dense for a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from .report import Call


def layer_row(calls: Sequence[Call]) -> tuple[float | str | None, ...]:
    """One entry per layer: the mean density of its sparse calls, why most of its calls were dense if none was sparse,
    or None where no call was seen.

    It waits for the device once, if densities are still there.

    Args:
        calls: of one evaluation; those outside the video self-attention are passed over.
    """
    layers: dict[int, list[Call]] = {}
    for call in calls:
        if call.position is not None:
            layers.setdefault(call.position.layer, []).append(call)
    sparse = [call for calls in layers.values() for call in calls if call.density is not None]
    read = dict(zip(map(id, sparse), _values([call.density for call in sparse]), strict=True))
    row: list[float | str | None] = [None] * (1 + max(layers, default=-1))
    for layer, here in layers.items():
        densities = [read[id(call)] for call in here if id(call) in read]
        if densities:
            row[layer] = sum(densities) / len(densities)
        else:
            row[layer] = Counter(str(call.reason) for call in here).most_common(1)[0][0]
    return tuple(row)


def _values(densities: Sequence[torch.Tensor | float | None]) -> list[float]:
    if not any(isinstance(one, torch.Tensor) for one in densities):
        return [float(one) for one in densities if one is not None]
    device = next(one.device for one in densities if isinstance(one, torch.Tensor))
    values = [torch.as_tensor(one, dtype=torch.float32, device=device).reshape(()) for one in densities]
    return [float(one) for one in torch.stack(values).tolist()]
