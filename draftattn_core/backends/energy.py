"""What CalibAtt measures of a call, by whatever is fastest: the Triton kernel on a GPU that has it, else torch."""

from __future__ import annotations

import importlib.util
import logging

from torch import Tensor

from ..geometry.layout import LayoutTables
from ..method.calibatt.survey import Survey, row_similarity, survey

log = logging.getLogger(__name__)


def surveyed(q: Tensor, k: Tensor, tables: LayoutTables, scale: float, *, key_bias: Tensor | None = None) -> Survey:
    """Block energies and likeness of spatial rows; see `survey` for the arguments."""
    if q.is_cuda and importlib.util.find_spec("triton") is not None:
        try:
            from ...kernels.energy import energy

            bias = None if key_bias is None else key_bias.float().contiguous()
            found = energy(q, k, tables.geometry, scale, key_bias=bias)[0]
            return Survey(found, row_similarity(q, k, tables, scale, key_bias=key_bias))
        except Exception as error:
            log.info("block energies are computed by torch, the kernel cannot: %s", error)
    return survey(q, k, tables, scale, key_bias=key_bias)
