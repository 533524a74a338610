"""The backend `triton_gluon`: the backend `triton_hopper` with `attend` written out in Gluon.

Opt-in like that one. Triton does not interpret Gluon, so it serves nobody without a GPU; its tests run the kernel's
source on a machine of their own.
"""

from __future__ import annotations

import torch

from ...phrase import Phrase, Text
from ..call_kind import CallKind
from . import hopper
from .trust import Trust


class GluonBackend(hopper.HopperBackend):
    """`attend` in the Gluon form."""

    def unfit(self, kind: CallKind) -> Text | None:
        return lacking(kind.device, kind.head_dim) or super().unfit(kind)


def lacking(device: torch.device, head_dim: int) -> Text | None:
    """Why a device cannot run the kernel at a head size."""
    if device.type == "cpu":
        return hopper.not_there("cpu")
    return hopper.lacking(device, head_dim)


GLUON = GluonBackend("triton_gluon", Trust(Phrase("kernels_gluon", "its Gluon kernel for Hopper")))
