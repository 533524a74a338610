"""The backend `triton`: kernels for draft, selection, tail and attention on NVIDIA and AMD GPUs."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from ...phrase import Foreign, Phrase, Text
from ..call_kind import CallKind, Variant
from ..request import AttendRequest, BackendFailure
from . import machine, self_check
from .backend import TritonBackend, kind_of
from .trust import Trust, kernel_key

HEAD_DIMS = (64, 128)
BLOCKS = (64, 128)


class PointerBackend(TritonBackend):
    """`attend` in the pointer form, which reads K and V where they lie if a request was made elsewhere."""

    bits = (16, 8)

    def unfit(self, kind: CallKind) -> Text | None:
        if kind.device.type != "cuda":
            if kind.device.type != "cpu" or machine.triton_missing() is not None or not machine.interpreted():
                return Phrase(
                    "kernels_device",
                    "its kernels run on NVIDIA and AMD GPUs, not on {device}",
                    device=kind.device.type,
                )
            return None
        missing = machine.triton_missing()
        if missing is not None:
            return missing
        if kind.dtype not in (torch.float16, torch.bfloat16):
            return wrong_type(kind)
        if kind.head_dim not in HEAD_DIMS:
            return wrong_head_size(kind.head_dim)
        if kind.q_block not in BLOCKS or kind.k_block not in BLOCKS:
            return Phrase(
                "kernels_blocks",
                "its kernels take blocks of {known} tokens, not {blocks}",
                known=str(BLOCKS),
                blocks=f"{kind.q_block}/{kind.k_block}",
            )
        from ....kernels.configs import attend_config

        try:
            attend_config(machine.architecture(kind.device), kind.head_dim, 0)
        except ValueError as error:
            return Foreign(error)
        return None

    def key(self, kind: CallKind) -> tuple[Hashable, ...]:
        return kernel_key(kind.device, kind.dtype, kind.head_dim, kind.q_block, kind.k_block)

    def check_gathered(self, kind: CallKind, variant: Variant) -> Text | None:
        """What is wrong with the kernels of a request made elsewhere, or None."""
        return self_check.check_gathered(super().attend, kind, variant)

    def attend(self, request: AttendRequest) -> Tensor:
        """`TritonBackend.attend`.

        Raises:
            BackendFailure: if the kernels for it do not run on this device or are wrong there. Whole calls have others.
        """
        kind = kind_of(request)
        reason = self._distrust((*self.key(kind), "gathered"), kind, self.check_gathered)
        if reason is not None:
            raise BackendFailure(reason)
        return super().attend(request)


def wrong_type(kind: CallKind) -> Text:
    """Why kernels do not serve a kind of call that is neither in float16 nor in bfloat16."""
    return Phrase("kernels_type", "its kernels take float16 and bfloat16, not {dtype}", dtype=str(kind.dtype))


def wrong_head_size(head_dim: int) -> Text:
    """Why kernels do not serve a head size that is none of `HEAD_DIMS`."""
    sizes = str(HEAD_DIMS)
    return Phrase("kernels_head_size", "its kernels take head sizes {sizes}, not {size}", sizes=sizes, size=head_dim)


POINTER = PointerBackend("triton", Trust(Phrase("kernels_triton", "its Triton kernels")))
