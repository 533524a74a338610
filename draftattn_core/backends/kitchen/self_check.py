"""The self-check of `sol_attn` on a device: a small call against the reference before it is trusted.

Its selection goes by scores rounded to INT8, and a pair chosen otherwise would be taken for a wrong kernel. So here
block means lie on axes of their own, and every row scores its blocks in even steps far larger than that rounding. All
keys share a direction that queries shun, so that a place without a token, whose key is zero, would outweigh them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ...geometry.blocks import without_autocast
from ...geometry.grid import TokenGrid
from ...geometry.layout import Layout, LayoutTables, build_tables
from ...method.policy import Policy
from ...method.rules.call import RuleCall
from ...phrase import LIST, Joined, Phrase, Text
from ..call_kind import CallKind, Variant, bias_in_words
from ..reference import attend_reference
from ..request import OUT_OF_MEMORY, AttendRequest
from ..triton.trust import in_short, short_of_memory
from . import places

log = logging.getLogger(__name__)

# Relative L2 error of a query block that tells INT8 (the package: a cosine of about 0.999, that is 0.045) from a wrong
# kernel.
LIMIT = 6e-2
# A short last block, and extra tokens on both sides.
GRID, EXTRA = TokenGrid(5, 10, 16), (7, 30)
DENSITY, GAIN = 0.3, 1.0
# In logits: from one block to the next for a row, and what the shared direction takes from all of them.
_STEP, _SHUNNED = 0.3, 3.0
_NOISE = 0.7


def small_call(kind: CallKind, variant: Variant, gain: bool) -> RuleCall:
    """A small call of a kind, two heads with budgets of their own."""
    layout = Layout(GRID, *EXTRA, places.BLOCK, places.BLOCK)
    tables = build_tables(layout, kind.device)
    policy = Policy((DENSITY, 0.5), "row", variant.tail, (GAIN, GAIN / 2) if gain else 0.0, spread=False)
    q, k, v = (x.to(kind.device, kind.dtype) for x in _tokens(tables, kind.head_dim))
    key_bias = torch.linspace(-4, 4, layout.extra, device=kind.device)[None] if variant.biased else None
    return RuleCall(q, k, v, tables, policy, policy.of(2), float(kind.head_dim) ** -0.5, key_bias)


def _tokens(tables: LayoutTables, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (1, 2, L, dim) in float32 on the CPU; see the file."""
    generator = torch.Generator().manual_seed(0)
    perm, blocks = tables.perm.cpu(), tables.k.video
    of_token = tables.k.of_token.cpu()[: tables.layout.grid.tokens]
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q[: blocks + 1]
    axes, shared = axes[:-1], axes[-1]
    index = torch.arange(blocks)
    steps = (5 * index[:, None] + 3 * index[None, :]) % blocks - blocks // 2
    q, k, v = _NOISE * torch.randn(3, 1, 2, tables.layout.tokens, dim, generator=generator)
    video, length = perm[: len(of_token)], dim**0.25
    q -= length * _SHUNNED * shared
    k += length * shared
    q[:, :, video] += length * _STEP * (steps.float() @ axes)[of_token]
    k[:, :, video] += length * axes[of_token]
    v[:, :, video] += torch.randn(blocks, dim, generator=generator)[of_token]
    return q, k, v


def check(
    run: Callable[[RuleCall], tuple[Tensor, AttendRequest]], kind: CallKind, variant: Variant, gain: bool
) -> Text | None:
    """Compute a small call and judge it; what is wrong, or None.

    Args:
        gain: whether the tail has a gain, that is whether keys of video blocks have a bias, of which the documentation
            of `sol_attn` says nothing good.

    Raises:
        OUT_OF_MEMORY: where memory is short: that says nothing about the kernel.
    """
    tail = Phrase("variant_tail", "tail {tail}", tail=variant.tail)
    if gain:
        tail = Phrase("variant_tail_gain", "tail {tail} with a gain", tail=variant.tail)
    what = Joined((tail, bias_in_words(variant.biased)), LIST)
    try:
        # Not as the caller of the first call has it: the verdict is for all of them.
        with without_autocast(kind.device), torch.no_grad():
            out, request = run(small_call(kind, variant, gain))
            error = relative_error(out, request)
    except Exception as failure:
        if short_of_memory(failure):
            raise OUT_OF_MEMORY(str(failure)) from failure
        log.debug("DraftAttention's check of sol_attn, %s", what, exc_info=failure)
        return Phrase(
            "kitchen_fails",
            "it does not run on {device}: {error} ({call})",
            device=str(kind.device),
            error=in_short(failure),
            call=what,
        )
    if not error < LIMIT:
        return Phrase(
            "kitchen_off",
            "its output is off by {error} from the reference on {device} ({call})",
            error=f"{error:.1e}",
            device=str(kind.device),
            call=what,
        )
    return None


def relative_error(out: Tensor, request: AttendRequest) -> float:
    """The largest relative L2 error of a query block of out (B, H, L, D) against the definition."""
    tables = request.tables
    expected = attend_reference(request).double()
    bounds = tables.q.bounds
    cuts = [tables.perm[start:end] for start, end in zip(bounds[:-1], bounds[1:])]
    errors = [
        ((out[:, :, cut].double() - expected[:, :, cut]).norm(dim=(2, 3)) / expected[:, :, cut].norm(dim=(2, 3)))
        for cut in cuts
    ]
    # Not by their maximum alone, which may hide one that is not a number.
    return float(torch.stack(errors).nan_to_num(nan=torch.inf).max())
