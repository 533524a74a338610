"""The backend `triton_hopper`: the backend `triton` with a warp-specialised `attend`, for Hopper GPUs.

Opt-in, because it has not yet run on a GPU: its results are proven by Triton's interpreter and its binaries by what
the compiler says of them. Draft, selection and tail are the kernels of `triton`. It refuses what it is not made for,
and a device where a small call differs from the reference or where the compiler did not specialise the warps.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from functools import partial

import torch
from torch import Tensor

from ...method.rules.call import RuleCall
from ...phrase import Foreign, Phrase, Text
from ..call_kind import CallKind, Variant
from . import machine, self_check
from .backend import TritonBackend
from .computed import Computed
from .pointer import HEAD_DIMS, wrong_head_size, wrong_type
from .trust import Trust, kernel_key

log = logging.getLogger(__name__)

UNPROVEN = "the backend {} has not yet run on a GPU: compare a picture with backend triton before you trust it"
ARCHITECTURE = "sm_90"
Q_BLOCK = 128
K_BLOCKS = (64, 128)


class HopperBackend(TritonBackend):
    """`attend` in the warp-specialised form. A request made elsewhere takes the kernels of whole calls."""

    def unfit(self, kind: CallKind) -> Text | None:
        why = lacking(kind.device, kind.head_dim)
        if why is not None or kind.device.type == "cpu":
            return why
        if kind.dtype not in (torch.float16, torch.bfloat16):
            return wrong_type(kind)
        if kind.q_block != Q_BLOCK or kind.k_block not in K_BLOCKS:
            return Phrase(
                "hopper_blocks",
                "its kernels take query blocks of {q} and key blocks of {k} tokens, not {blocks}",
                q=Q_BLOCK,
                k=str(K_BLOCKS),
                blocks=f"{kind.q_block}/{kind.k_block}",
            )
        return None

    def key(self, kind: CallKind) -> tuple[Hashable, ...]:
        return kernel_key(kind.device, kind.dtype, kind.head_dim, kind.k_block)

    def refuses(self, kind: CallKind) -> Text | None:
        reason = super().refuses(kind)
        if reason is None and not self.under_test(kind.device):
            self.trust.reason_against(kernel_key(kind.device, UNPROVEN), partial(_caution, self.name))
        return reason

    def check(self, kind: CallKind, variant: Variant) -> Text | None:
        """What is wrong with the kernels of a whole call, or None: with their results, or with their warps."""
        from ....kernels.attend_hopper import SPECIALISED_WARPS

        warps: list[int | None] = []

        def group(call: RuleCall, out: Tensor) -> Computed:
            done = self.group(call, out)
            warps.extend(done.warps)
            return done

        wrong = self_check.check(group, kind, variant)
        if wrong is None and any(found not in (None, SPECIALISED_WARPS) for found in warps):
            return Phrase(
                "hopper_warps",
                "Triton compiled it for {device} without specialising its warps ({variant})",
                device=str(kind.device),
                variant=variant.text(),
            )
        return wrong


def _caution(name: str) -> None:
    """A word to those whose GPU passes the check."""
    log.warning("DraftAttention: %s", UNPROVEN.format(name))


def lacking(device: torch.device, head_dim: int) -> Text | None:
    """Why a device cannot run the kernels at a head size. On the CPU they run only where Triton interprets them."""
    missing = machine.triton_missing()
    if device.type == "cpu" and missing is None and machine.interpreted():
        return None
    if device.type != "cuda":
        return not_there(device.type)
    if missing is not None:
        return missing
    name = machine.architecture(device)
    if name != ARCHITECTURE:
        return Phrase(
            "hopper_only",
            "its kernels run on Hopper GPUs ({known}), this is {found}: use backend 'triton'",
            known=ARCHITECTURE,
            found=name,
        )
    if head_dim not in HEAD_DIMS:
        return wrong_head_size(head_dim)
    try:
        from ....kernels import attend_hopper

        missing_there = attend_hopper.lacking()
        return None if missing_there is None else Foreign(missing_there)
    except Exception as error:
        return machine.not_imported(error)


def not_there(device: str) -> Text:
    """Why kernels for Hopper do not run on another kind of device."""
    return Phrase(
        "hopper_device",
        "its kernels run on Hopper GPUs ({known}), not on {device}",
        known=ARCHITECTURE,
        device=device,
    )


HOPPER = HopperBackend("triton_hopper", Trust(Phrase("kernels_hopper", "its kernels for Hopper")))
