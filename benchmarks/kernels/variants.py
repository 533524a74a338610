"""The variants of `attend` that the bench knows. A new one is one entry of `VARIANTS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from draftattention.draftattn_core.backends.request import AttendRequest, Listed
from draftattention.draftattn_core.backends.triton.hopper import attend_listed, run_hopper, unfit
from draftattention.draftattn_core.backends.triton.op import call_op
from draftattention.draftattn_core.backends.triton.pointer import run_triton

Attend = Callable[[AttendRequest, Listed, "tuple[Tensor, Tensor] | None"], Tensor]


@dataclass(frozen=True)
class Variant:
    """One implementation of `attend`.

    Attributes:
        name: as in the results.
        backend: the registry's name for it.
        run: a whole call as the backend makes it, and the request it amounts to; see `Backend.run`.
        attend: output (B, H, L, D) of a request, its selection as kernels walk it, and K and V in block order if they
            are at hand.
        refuses: why it cannot run on a device at a head size; None if it can.
        required: whether the bench tells no speed at all while this one is wrong. One that is opt-in only loses its
            own.
        gathers: whether it can read K and V where the host left them.
    """

    name: str
    backend: str
    run: Callable[..., tuple[Tensor, AttendRequest]]
    attend: Attend
    refuses: Callable[[torch.device, int], str | None]
    required: bool = True
    gathers: bool = True


def _pointer(request: AttendRequest, listed: Listed, in_order: tuple[Tensor, Tensor] | None) -> Tensor:
    return call_op(request, listed=listed, in_order=in_order)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("pointer", "triton", run_triton, _pointer, lambda device, dim: None),
        Variant("hopper", "triton_hopper", run_hopper, attend_listed, unfit, required=False, gathers=False),
    )
}
