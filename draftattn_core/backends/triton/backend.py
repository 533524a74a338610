"""A backend on our kernels: a whole call on the device, a group of heads after the other, and trust in it.

It says why it cannot serve a kind of call instead of failing: no Triton, an old or a broken one, a device, type or size
without a kernel, a kernel that does not compile or does not fit, or one whose one-time check against the reference
failed. What sets one form of `attend` apart from another is in its subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ....kernels.types import AttendInputs, Tail
from ...method.draft import raw_logits
from ...method.policy import Bits, Policy, TailName
from ...method.rules.call import RuleCall
from ...method.selection import forced_blocks, ranking_of
from ...method.tail.formula import name_of
from ...phrase import Phrase, Text
from ..call_kind import CallKind, Variant
from ..request import AttendRequest, new_output
from . import head_groups, launch, self_check
from .computed import Computed
from .op import call_op
from .trust import Trust, compiler_failed, short_of_memory


class TritonBackend(ABC):
    """One form of `attend`, with the kernels for draft, selection and tail that all forms share.

    Attributes:
        name: of the backend in the registry.
        trust: verdicts on its kernels.
        bits: of the scores its `attend` computes.
    """

    bits: tuple[Bits, ...] = (16,)

    def __init__(self, name: str, trust: Trust) -> None:
        self.name = name
        self.trust = trust
        self.launch = launch.LAUNCHES[name]

    @abstractmethod
    def unfit(self, kind: CallKind) -> Text | None:
        """Why no kernel is made for calls of a kind, without trying any; None if one is."""

    @abstractmethod
    def key(self, kind: CallKind) -> tuple[Hashable, ...]:
        """What verdicts on the kernels of a kind of call go by, beside the variant."""

    def refuses(self, kind: CallKind) -> Text | None:
        """Why the kernels cannot serve calls of a kind, in words a user can act on; None if they can."""
        reason = self.unfit(kind)
        return reason if reason is not None else self._distrust(self.key(kind), kind, self.check)

    def _distrust(
        self, kernel: tuple[Hashable, ...], kind: CallKind, check: Callable[[CallKind, Variant], Text | None]
    ) -> Text | None:
        """The first reason against one of the variants of a kernel; each is checked on first use."""
        unchecked = self.under_test(kind.device)
        for variant in kind.variants:
            judge = (lambda: None) if unchecked else partial(check, kind, variant)
            reason = self.trust.reason_against((*kernel, variant), judge)
            if reason is not None:
                return reason
        return None

    def under_test(self, device: torch.device) -> bool:
        """Whether kernels are not checked before use: where Triton interprets them they are what is being tested."""
        return device.type == "cpu"

    def warm_up(self, kind: CallKind, tails: Sequence[TailName], report: Callable[[Text], None]) -> None:
        """Compile and check the kernels of a run before its first block is computed; see `Backend.warm_up`.

        Triton compiles a kernel when it is first launched, and keeps the binary on disk: seconds in the first run on a
        machine, milliseconds in later ones. Small calls launch every variant that the run may need; that other sizes
        need no others is what tests/kernels/test_one_binary.py is about. It stops where a variant of `kind` itself is
        refused, since other kernels serve the run then. A refusal is left to the calls.
        """
        if self.unfit(kind) is not None:
            return
        others = [kind.with_tail(tail).variants[0] for tail in tails]
        wanted = list(dict.fromkeys([*kind.variants, *others]))
        missing = [variant for variant in wanted if not self.trust.knows((*self.key(kind), variant))]
        for variant in wanted:
            if variant in missing:
                number = missing.index(variant) + 1
                report(
                    Phrase(
                        "wait_compiles",
                        "DraftAttention compiles and checks {kernels}, {number} of {count} (tail {tail}); "
                        "once per machine",
                        kernels=self.trust.name,
                        number=number,
                        count=len(missing),
                        tail=variant.tail,
                    )
                )
            reason = self.trust.reason_against((*self.key(kind), variant), partial(self.check, kind, variant))
            if reason is not None and variant in kind.variants:
                return

    def check(self, kind: CallKind, variant: Variant) -> Text | None:
        """What is wrong with the kernels of a whole call, or None; see `self_check.check`."""
        return self_check.check(self.group, kind, variant)

    def run(self, call: RuleCall, keep: Tensor | None = None) -> tuple[Tensor, AttendRequest]:
        """A whole call on the device: one pass over Q, one over K and V, selection, attention. No host synchronisation.

        Args:
            keep: (B, H, q blocks, k blocks) bool, the selection; None for a rule that kernels select by.

        Raises:
            BackendFailure: if a kernel does not compile for this device or does not fit on it; the registry knows then.
        """
        layout, out, batch = call.tables.layout, new_output(call.q), call.q.shape[0]
        keeps, counts, tails, shifts = [], [], [], []
        bits = head_groups.settled_bits(layout, batch, call.heads.bits)
        groups = head_groups.groups_by_bits(layout, batch, bits) or head_groups.head_groups(layout, *call.q.shape[:2])
        call = replace(call, heads=replace(call.heads, bits=bits))
        part = groups[0]
        try:
            for part in groups:
                done = self.group(call.of_heads(part), out[:, part], None if keep is None else keep[:, part])
                assert done.request.counts is not None
                keeps.append(done.request.keep)
                counts.append(done.request.counts)
                tails.append(done.request.tail)
                shifts.append(done.request.shift)
                # Freed before the next group asks for the same.
                del done
        except Exception as error:
            # Anything else is a bug and not ours to hide.
            if not (short_of_memory(error) or compiler_failed(error)):
                raise
            biased = call.key_bias is not None
            kind = CallKind.of(call.q, layout.q_block, layout.k_block, call.policy, biased=biased)
            kind = kind.with_bits(8 if 8 in bits[part] else 16, call.policy.fp8_values)
            # The dearest tail's kernels ran.
            raise self.trust.failure((*self.key(kind), kind.variants[-1]), call.q.device, error) from error
        if keep is None:
            keep = keeps[0] if len(keeps) == 1 else torch.cat(keeps, dim=1)
        count = counts[0] if len(counts) == 1 else torch.cat(counts, dim=1)
        return out, AttendRequest.of(call, keep, _joined(tails), count, _joined_shifts(shifts, groups, call.k))

    def group(self, call: RuleCall, out: Tensor, keep: Tensor | None = None) -> Computed:
        """Compute a call, or some of its heads, in one piece into `out` (B, H, L, D)."""
        from ....kernels import select

        tables, policy, geometry = call.tables, call.policy, call.tables.geometry
        draft, tail, in_order, codes, shift = launch.prepare_copies(call)
        assert in_order is not None
        if keep is None:
            ranking, scores = ranking_of(policy), raw_logits(draft, tables, call.scale)
            limits = ranking.limits(tables, policy, call.heads.densities)
            keep, selected = select.select(scores, forced_blocks(tables, policy), geometry, ranking.form, limits)
            del scores
        else:
            selected = select.lists_of(keep)
        k, v = in_order
        inputs = AttendInputs(call.q, k, v, geometry, selected, tail, call.key_bias, call.scale, True, codes)
        warps = self.launch(inputs, out)
        return Computed(AttendRequest.of(call, keep, tail, selected.counts, shift), draft, warps)

    def attend(self, request: AttendRequest) -> Tensor:
        """Output (B, H, L, D) of a request made elsewhere: the selection becomes lists."""
        return call_op(request, self.name)


def kind_of(request: AttendRequest) -> CallKind:
    """The kind of call that a request is; its method does not matter any more."""
    layout, policy = request.tables.layout, Policy(tail=name_of(request.tail))
    return CallKind.of(request.q, layout.q_block, layout.k_block, policy, biased=request.key_bias is not None)


def _joined(tails: list[Tail | None]) -> Tail | None:
    """The tail of all heads from those of groups, which have the same parts."""
    known = [tail.parts() for tail in tails if tail is not None]
    if not known:
        return None
    if len(known) == 1:
        return Tail(*known[0])
    log_weight, *others = zip(*known)
    return Tail(torch.cat(log_weight), *(torch.cat(parts, dim=1) for parts in others))


def _joined_shifts(shifts: list[Tensor | None], groups: Sequence[slice], k: Tensor) -> Tensor | None:
    """`AttendRequest.shift` of all heads from that of groups; 0 for those that have none."""
    if len(shifts) == 1 or all(shift is None for shift in shifts):
        return shifts[0]

    def none(part: slice) -> Tensor:
        return torch.zeros(k.shape[0], part.stop - part.start, k.shape[3], device=k.device)

    return torch.cat([none(part) if shift is None else shift for shift, part in zip(shifts, groups)], dim=1)
