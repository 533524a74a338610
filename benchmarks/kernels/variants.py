"""The variants of `attend` that the bench knows. A new one is one entry of `VARIANTS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from draftattention.draftattn_core.backends.request import AttendRequest, new_output
from draftattention.draftattn_core.backends.triton import gluon, hopper
from draftattention.draftattn_core.backends.triton.backend import TritonBackend
from draftattention.draftattn_core.backends.triton.gluon import GLUON
from draftattention.draftattn_core.backends.triton.hopper import HOPPER
from draftattention.draftattn_core.backends.triton.pointer import POINTER
from draftattention.draftattn_core.method.rules.call import RuleCall
from draftattention.kernels.types import AttendInputs, Selected

Attend = Callable[[AttendRequest, Selected, "tuple[Tensor, Tensor] | None"], Tensor]


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
    run: Callable[[RuleCall], tuple[Tensor, AttendRequest]]
    attend: Attend
    refuses: Callable[[torch.device, int], str | None]
    required: bool = True
    gathers: bool = True


def inputs_for(request: AttendRequest, selected: Selected, in_order: tuple[Tensor, Tensor] | None) -> AttendInputs:
    """What a form of `attend` takes, of a request, its selection, and K and V in block order if they are at hand."""
    tail = None if request.tail is None else request.tail.to(request.q.dtype)
    k, v = in_order or (request.k, request.v)
    rest = request.tables.geometry, selected, tail, request.key_bias, request.scale
    return AttendInputs(request.q, k, v, *rest, in_order is not None)


def _attend_of(backend: TritonBackend) -> Attend:
    """The backend's `attend` by itself."""

    def attend(request: AttendRequest, selected: Selected, in_order: tuple[Tensor, Tensor] | None) -> Tensor:
        out = new_output(request.q)
        backend.launch(inputs_for(request, selected, in_order), out)
        return out

    return attend


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("pointer", POINTER.name, POINTER.run, _attend_of(POINTER), lambda device, dim: None),
        Variant("hopper", HOPPER.name, HOPPER.run, _attend_of(HOPPER), hopper.lacking, required=False, gathers=False),
        Variant("gluon", GLUON.name, GLUON.run, _attend_of(GLUON), gluon.lacking, required=False, gathers=False),
    )
}
