"""Block energies of a call by whatever computes them fastest: the Triton kernel on a GPU that has it, else torch."""

from __future__ import annotations

import importlib.util
import logging

from torch import Tensor

from ..geometry.layout import LayoutTables
from ..method.calibatt.energy import block_energy

log = logging.getLogger(__name__)


def measured_energy(
    q: Tensor, k: Tensor, tables: LayoutTables, scale: float, *, key_bias: Tensor | None = None
) -> Tensor:
    """(B, H, video q blocks, k blocks) float32 or float64, rows summing to 1; see `block_energy` for the arguments."""
    if q.is_cuda and importlib.util.find_spec("triton") is not None:
        try:
            from ...kernels.energy import energy

            bias = None if key_bias is None else key_bias.float().contiguous()
            return energy(q, k, tables.geometry, scale, key_bias=bias)[0]
        except Exception as error:
            log.info("block energies are computed by torch, the kernel cannot: %s", error)
    return block_energy(q, k, tables, scale, key_bias=key_bias).blocks
