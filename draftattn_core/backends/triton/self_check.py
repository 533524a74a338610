"""The self-check: a small random call by kernels, held against the core and the reference before they are trusted."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...geometry.blocks import without_autocast
from ...geometry.grid import TokenGrid
from ...geometry.layout import Layout, build_tables
from ...method.draft import Draft, make_draft
from ...method.policy import Policy, tail_rank
from ...method.rules import rule_of
from ...method.rules.call import RuleCall
from ...method.selection import select_from_draft
from ...method.tail.expand import expand_blocks
from ...phrase import Phrase, Text
from ..call_kind import GIVEN, CallKind, Variant
from ..reference import attend_reference
from ..request import OUT_OF_MEMORY, AttendRequest, new_output
from .computed import Computed
from .trust import in_short, short_of_memory

log = logging.getLogger(__name__)

# Relative L2 error that tells rounding to bfloat16 (a few 1e-3) from a wrong kernel.
LIMIT = 2e-2
# The same where weights are rounded to the three bits of FP8, which the reference does not do.
FP8_LIMIT = 5e-2
# With this one no score of a small call is so near a threshold that rounding could change the selection.
_SEED = 2


def check(group: Callable[..., Computed], kind: CallKind, variant: Variant) -> Text | None:
    """Compute a small call with the kernels of `variant` and judge it; what is wrong, or None.

    `group` computes a call into an output, with the selection where kernels do not select (`TritonBackend.group`).

    Raises:
        OUT_OF_MEMORY: where memory is short: that says nothing about the kernels.
    """
    policy = small_policy(variant)

    def compute() -> Text | None:
        call = small_call(kind, variant)
        out, given = new_output(call.q), variant.method == GIVEN
        done = group(call, out, rule_of(policy.method).select(call)) if given else group(call, out)
        return judge(out, done.request, done.draft, policy)

    return _verdict(compute, kind, variant)


def check_gathered(attend: Callable[[AttendRequest], Tensor], kind: CallKind, variant: Variant) -> Text | None:
    """The same for kernels that take a request made elsewhere; the method of `variant` does not matter."""

    def compute() -> Text | None:
        request = small_request(kind, variant)
        return _off_by([_off(attend(request), attend_reference(request))])

    return _verdict(compute, kind, variant)


def small_layout(q_block: int, k_block: int) -> Layout:
    """Short blocks, extra tokens, more than one block of each kind."""
    return Layout(TokenGrid(3, 9, 13), 7, 30, q_block, k_block)


def small_policy(variant: Variant) -> Policy:
    """A policy that takes the kernels of `variant` and skips some blocks of a small call."""
    method = "head" if variant.method == GIVEN else variant.method
    return Policy(density=0.4, method=method, tail=variant.tail, top_p=0.5, bits=variant.bits, fp8_values=variant.fp8)


def small_call(kind: CallKind, variant: Variant) -> RuleCall:
    """A small random call of a kind."""
    layout = small_layout(kind.q_block, kind.k_block)
    tables, scale = build_tables(layout, kind.device), float(kind.head_dim) ** -0.5
    shape = (3, 1, 2, layout.tokens, kind.head_dim)
    q, k, v = torch.randn(shape, generator=torch.Generator().manual_seed(_SEED)).to(kind.device, kind.dtype)
    key_bias = torch.linspace(-2, 0, layout.extra, device=kind.device)[None] if variant.biased else None
    policy = small_policy(variant)
    return RuleCall(q, k, v, tables, policy, policy.of(2), scale, key_bias)


def small_request(kind: CallKind, variant: Variant) -> AttendRequest:
    """The same with draft, selection and tail by the core."""
    call = small_call(kind, variant)
    return AttendRequest.of(call, rule_of(call.policy.method).select(call), call.tail)


def judge(out: Tensor, request: AttendRequest, draft: Draft, policy: Policy) -> Text | None:
    """What is wrong with a call that kernels computed, or None. Each stage is checked on the previous one's own output.

    Args:
        out: (B, H, L, D).
        request, draft: what they made of q, k and v under `policy`.
    """
    pairs = int((request.keep ^ select_from_draft(draft, request.tables, policy, request.scale)).sum())
    if pairs:
        return Phrase(
            "kernel_selection", "its selection differs from the reference's in {pairs} block pairs", pairs=pairs
        )
    off = _off(out, attend_reference(request))
    wrong = _off_by([off], FP8_LIMIT if request.fp8_values else LIMIT)
    return wrong or _off_by([*_draft_errors(request, draft, policy), *_tail_errors(request, policy)])


def _verdict(compute: Callable[[], Text | None], kind: CallKind, variant: Variant) -> Text | None:
    try:
        # Not as the caller of the first call has it: the verdict is for all of them.
        with without_autocast(kind.device), torch.no_grad():
            wrong = compute()
    except Exception as error:
        if short_of_memory(error):
            raise OUT_OF_MEMORY(str(error)) from error
        log.debug("DraftAttention's check of %s", variant, exc_info=error)
        return Phrase(
            "kernel_fails_at",
            "a kernel does not run on {device}: {error} ({variant})",
            device=str(kind.device),
            error=in_short(error),
            variant=variant.text(),
        )
    if wrong is None:
        return None
    return Phrase(
        "kernel_wrong_at",
        "{wrong} on {device} ({variant})",
        wrong=wrong,
        device=str(kind.device),
        variant=variant.text(),
    )


def _off_by(errors: list[float], limit: float = LIMIT) -> Text | None:
    # Not by their maximum, which may hide one that is not a number.
    wrong = [error for error in errors if not error < limit]
    if not wrong:
        return None
    return Phrase("kernel_off", "its output is off by {error} from the reference", error=f"{wrong[0]:.1e}")


def _off(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _draft_errors(request: AttendRequest, draft: Draft, policy: Policy) -> list[float]:
    """How far block means and spreads are from the core's."""
    expected = make_draft(request.q, request.k, request.tables, spread=policy.of(request.q.shape[1]).spreads)
    errors = [_off(draft.q_mean, expected.q_mean), _off(draft.k_mean, expected.k_mean)]
    if draft.k_spread is not None and expected.k_spread is not None:
        errors.append(_off(draft.k_spread, expected.k_spread))
    elif draft.k_spread is not expected.k_spread:
        errors.append(math.inf)
    return errors


def _tail_errors(request: AttendRequest, policy: Policy) -> list[float]:
    """How far a tail's means, and what its ranks and average add up to, are from the core's statistics.

    Ranks are not compared by themselves: the kernels find them by another iteration.
    """
    tail, name = request.tail, policy.tail
    if tail is None or not policy.has_tail:
        return [math.inf] if policy.has_tail or tail is not None else []
    assert isinstance(name, str)
    expected = expand_blocks(request.k, request.v, request.tables, (name,))
    if tail.ranks != tail_rank(name) or (tail.cov is None) != (expected.total is None):
        return [math.inf]
    k_mean = expected.k_mean if request.shift is None else expected.k_mean - request.shift.unsqueeze(2)
    errors = [_off(tail.k_mean, k_mean), _off(tail.v_mean, expected.v_mean)]
    if tail.cov is not None and expected.total is not None:
        counts = expected.counts.double()
        total = tail.cov.double() * counts.sum()
        if tail.u is not None and tail.w is not None:
            total += torch.einsum("bhgrk,bhgrv,g->bhkv", tail.u.double(), tail.w.double(), counts)
        errors.append(_off(total, expected.total))
    return errors
