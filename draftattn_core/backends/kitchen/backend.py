"""The backend `kitchen`: comfy-kitchen's `sol_attn` on tokens in our order.

It needs no compiler, so it serves NVIDIA and AMD GPUs where Triton cannot run (Windows without triton-windows). What it
cannot do is a reason: blocks other than 64/64, budgets other than per row, linear tails, frames that are always kept.
Its products are INT8, and the rows of a query block share the tail of their mean query; the requests it makes say so
(`AttendRequest.shared_tail`), so gains are fitted to that tail. On the CPU it is the package's eager form, with whole
L x L maps, which is for tests and serves only those who ask for it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...geometry.per_head import per_head
from ...method.policy import TailName
from ...method.rules.call import RuleCall
from ...phrase import AND, LIST, Joined, Phrase, Text
from ..call_kind import CallKind, Variant
from ..nearest import Nearest
from ..request import OUT_OF_MEMORY, AttendRequest, BackendFailure, new_output
from ..triton.trust import Trust, kernel_key, short_of_memory
from . import package, places, self_check
from .selection import blocks_of, kept

NAME = "kitchen"
TAILS: tuple[TailName, ...] = ("none", "mean")
# Copies of Q, K, V and the output of the heads that are computed at once.
_PIECE_BYTES = 512 << 20


class KitchenBackend:
    """See the file. `trust` holds verdicts on the compiled kernel, with a tail gain and without."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust

    def unfit(self, kind: CallKind) -> Text | None:
        """Why no call on such a device, of such a type and size can be served; None if one can."""
        device = kind.device
        if device.type not in ("cpu", "cuda"):
            return Phrase(
                "kitchen_device",
                "comfy-kitchen's sol_attn runs on NVIDIA and AMD GPUs, not on {device}",
                device=device.type,
            )
        reason = package.missing()
        if reason is not None:
            return reason
        if kind.head_dim > places.HEAD_DIM:
            return Phrase(
                "kitchen_head_size",
                "comfy-kitchen's sol_attn takes head sizes up to {most}, not {size}",
                most=places.HEAD_DIM,
                size=kind.head_dim,
            )
        halves = (torch.float16, torch.bfloat16)
        if device.type == "cpu":
            if kind.dtype in (*halves, torch.float32):
                return None
            return Phrase(
                "kitchen_eager_type", "comfy-kitchen's eager sol_attn does not take {dtype}", dtype=str(kind.dtype)
            )
        if kind.dtype not in halves:
            return Phrase(
                "kitchen_type",
                "comfy-kitchen's sol_attn takes float16 and bfloat16, not {dtype}",
                dtype=str(kind.dtype),
            )
        if not package.compiled_for(device):
            return Phrase(
                "kitchen_not_compiled",
                "comfy-kitchen has no compiled sol_attn for this GPU (NVIDIA sm_80 or newer, AMD with WMMA)",
            )
        return None

    def refuses(self, kind: CallKind) -> Text | None:
        """Why it cannot serve calls of a kind as they are, in words a user can act on; None if it can."""
        if (kind.q_block, kind.k_block) != (places.BLOCK, places.BLOCK):
            return Phrase(
                "kitchen_blocks",
                "comfy-kitchen's sol_attn takes query and key blocks of {known} tokens, not {blocks}",
                known=places.BLOCK,
                blocks=f"{kind.q_block}/{kind.k_block}",
            )
        for variant in kind.variants:
            if variant.method != "row":
                return Phrase(
                    "kitchen_rule",
                    "comfy-kitchen's sol_attn selects by the rule 'row', not '{rule}'",
                    rule=variant.method,
                )
            if variant.tail not in TAILS:
                return Phrase(
                    "kitchen_tails",
                    "comfy-kitchen's sol_attn has the tails {known}, not {tail}",
                    known=Joined(TAILS, AND),
                    tail=variant.tail,
                )
        if kind.anchored:
            return Phrase("kitchen_frames", "comfy-kitchen's sol_attn cannot keep the blocks of a frame")
        return self.unfit(kind) or self._distrust(kind)

    def nearest(self, kind: CallKind) -> Nearest | None:
        """What it serves in place of a kind: row budgets for budgets over a head, the mean for a linear tail, blocks of
        64. None where that would be another method, or where the device, the type or the size is not for it."""
        if kind.anchored or any(variant.method not in ("row", "head") for variant in kind.variants):
            return None
        if max(kind.q_block, kind.k_block) > 128 or self.unfit(kind) is not None:
            return None
        tails = dict.fromkeys(variant.tail if variant.tail in TAILS else "mean" for variant in kind.variants)
        biased = kind.variants[0].biased
        variants = tuple(Variant("row", tail, biased) for tail in tails)
        served = replace(kind, q_block=places.BLOCK, k_block=places.BLOCK, variants=variants, gained=False)
        if self.refuses(served) is not None:
            return None
        gains = self.refuses(replace(served, gained=True)) is None
        return Nearest(NAME, served, gains, _lost(kind, gains))

    def under_test(self, device: torch.device) -> bool:
        """Whether it is not checked before use: the eager form is what the compiled kernel is checked for."""
        return device.type == "cpu"

    def warm_up(self, kind: CallKind, tails: Sequence[TailName], report: Callable[[Text], None]) -> None:
        """Check the kernel before the first block of a run is computed; see `Backend.warm_up`. It compiles nothing."""
        for wanted in (kind, *(kind.with_tail(tail) for tail in tails if tail in TAILS)):
            self.refuses(wanted)

    def _distrust(self, kind: CallKind) -> Text | None:
        if self.under_test(kind.device):
            return None
        for variant in kind.variants:
            for gain in (False, True) if kind.gained and variant.tail != "none" else (False,):
                check = partial(self_check.check, self.run, kind, variant, gain)
                reason = self.trust.reason_against(self._key(kind, variant, gain), check)
                if reason is not None:
                    return reason
        return None

    def _key(self, kind: CallKind, variant: Variant, gain: bool) -> tuple[Hashable, ...]:
        return kernel_key(kind.device, kind.dtype, kind.head_dim, variant, gain)

    def attend(self, request: AttendRequest) -> Tensor:
        """It serves whole calls only.

        Raises:
            BackendFailure: always.
        """
        raise BackendFailure("comfy-kitchen's sol_attn selects by itself: hand it whole calls")

    def run(self, call: RuleCall, keep: Tensor | None = None) -> tuple[Tensor, AttendRequest]:
        """A whole call: heads of one budget and tail in one call of `sol_attn`, in pieces of bounded size.

        Raises:
            BackendFailure: if the compiled kernel fails; the registry knows then.
        """
        assert keep is None
        tables, draft, out = call.tables, call.draft, new_output(call.q)
        kept_pairs = torch.empty(
            *call.q.shape[:2], tables.q.total, tables.k.total, dtype=torch.bool, device=call.q.device
        )
        try:
            for heads, wanted, tail in _pieces(call):
                index = slice(None) if len(heads) == call.q.shape[1] else _index(heads, call.q.device)
                some = replace(draft, q_mean=draft.q_mean[:, index], k_mean=draft.k_mean[:, index], k_spread=None)
                kept_pairs[:, index] = kept(some, tables, wanted)
                out[:, index] = self._piece(call, heads, index, wanted, tail)
        except Exception as error:
            if self.under_test(call.q.device):
                raise
            if short_of_memory(error):
                raise OUT_OF_MEMORY(str(error)) from error
            layout, biased = tables.layout, call.key_bias is not None
            kind = CallKind.of(call.q, layout.q_block, layout.k_block, call.policy, biased=biased)
            gains = (False, True) if kind.gained else (False,)
            for key in [self._key(kind, variant, gain) for variant in kind.variants for gain in gains]:
                failure = self.trust.failure(key, call.q.device, error)
            raise failure from error
        return out, replace(AttendRequest.of(call, kept_pairs, call.tail), shared_tail=True)

    def _piece(self, call: RuleCall, heads: Sequence[int], index: Tensor | slice, wanted: int, tail: bool) -> Tensor:
        """Output (B, h, L, D) of some heads that ask for `wanted` key blocks a row."""
        tables = call.tables
        q, k, v = (places.into(x[:, index], tables) for x in (call.q, call.k, call.v))
        dense = wanted >= tables.k.video
        # Rows and columns of extra tokens are computed exactly, of a dense head all.
        exact = [0 if dense else tables.k.video, tables.k.total]
        out = package.sol_attn()(
            q,
            k,
            v,
            scale=call.scale,
            sink_blocks=exact,
            sink_q=exact,
            key_bias=_key_bias(call, heads, tail and not dense),
            topk_ratio=0.0 if dense else wanted / tables.k.video,
            tail=tail,
            block_len=places.lengths(tables),
        )
        return places.out_of(out, tables, call.q.shape[0], call.q.shape[3])


def _pieces(call: RuleCall) -> Iterator[tuple[tuple[int, ...], int, bool]]:
    """Heads, key blocks a row asks for, and whether skipped ones count: `sol_attn` has one of each for all heads."""
    count = places.count(call.tables)
    groups: dict[tuple[int, bool], list[int]] = {}
    for head, (density, tail) in enumerate(zip(call.heads.densities, call.heads.tails, strict=True)):
        groups.setdefault((blocks_of(density, call.tables), tail != "none"), []).append(head)
    bytes_per_head = 4 * call.q.shape[0] * count * places.HEAD_DIM * call.q.itemsize
    if call.q.device.type == "cpu":
        # The eager form has several maps of all logits.
        bytes_per_head += 24 * call.q.shape[0] * count**2
    step = max(1, _PIECE_BYTES // bytes_per_head)
    for (wanted, has_tail), heads in groups.items():
        for start in range(0, len(heads), step):
            yield tuple(heads[start : start + step]), wanted, has_tail


def _key_bias(call: RuleCall, heads: Sequence[int], tail: bool) -> Tensor | None:
    """(B * h, places) float32 on the logits of exact keys, or None: the call's own, less the gain of the tail.

    A gain g on the skipped blocks' weights is the same as -g on every key that is computed exactly.
    """
    gains = [call.heads.gains[head] for head in heads] if tail else [0.0] * len(heads)
    if call.key_bias is None and not any(gains):
        return None
    batch, device = call.q.shape[0], call.q.device
    bias = torch.zeros(batch, len(heads), places.count(call.tables), dtype=torch.float32, device=device)
    if any(gains):
        bias -= per_head(gains, device, torch.float32)[:, None]
    if call.key_bias is not None:
        bias[:, :, places.extra_start(call.tables) :] += call.key_bias.float()[:, None]
    return bias.flatten(0, 1)


def _index(heads: Sequence[int], device: torch.device) -> Tensor:
    """(h,) int64 on the device; to be read only."""
    return per_head(heads, device, torch.int64)


def _lost(kind: CallKind, gains: bool) -> Text:
    """What calls of `kind` lose here; follows "without"."""
    lost: list[Text] = []
    if any(variant.tail.startswith("linear") for variant in kind.variants):
        lost.append(Phrase("lost_linear", "the linear term of the tail"))
    if any(variant.method == "head" for variant in kind.variants):
        lost.append(Phrase("lost_head_budget", "budgets that the rows of a head share"))
    if kind.q_block != places.BLOCK or kind.k_block != places.BLOCK:
        lost.append(
            Phrase(
                "lost_blocks",
                "blocks of {blocks} tokens (it has {known}/{known})",
                blocks=f"{kind.q_block}/{kind.k_block}",
                known=places.BLOCK,
            )
        )
    if any(variant.tail != "none" for variant in kind.variants):
        lost.append(Phrase("lost_query_tail", "a tail for each query (the queries of a block share one)"))
        lost += [] if gains else [Phrase("lost_gains", "tail gains")]
    return Joined([*lost, Phrase("lost_16_bits", "16-bit products (it has INT8)")], LIST)


KITCHEN = KitchenBackend(Trust(Phrase("kernels_kitchen", "comfy-kitchen's sol_attn")))
