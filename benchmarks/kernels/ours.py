"""Our kernels: whole calls and their parts at one shape and density."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.kernels import row as names
from benchmarks.kernels.inputs import FULL_SIZE_LIMITS, QKV, defined_rows, relative, sampled
from benchmarks.kernels.measure import after_failure, guarded, measured, timed
from benchmarks.kernels.plan import OTHER_TAILS, TAIL, Shape
from benchmarks.kernels.row import Row
from benchmarks.kernels.selections import Difference, difference
from benchmarks.kernels.timing import Clock
from benchmarks.kernels.variants import Variant
from draftattention.draftattn_core import Policy
from draftattention.draftattn_core.attention import Attention
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.backends.triton import launch
from draftattention.draftattn_core.geometry.layout import LayoutTables, build_tables
from draftattention.draftattn_core.method.draft import Draft, draft_logits, raw_logits
from draftattention.draftattn_core.method.rules.call import RuleCall
from draftattention.draftattn_core.method.selection import forced_blocks, ranking_of
from draftattention.kernels.types import Selected

# Relative L2 error that tells scores of INT8 codes, of random inputs at that, from a wrong kernel.
INT8_LIMIT = 3e-2


@dataclass(frozen=True)
class Call:
    """A call as the backend makes it, taken apart.

    Attributes:
        request: what `attend` is asked, with the tail; `bare` is the same without it.
        selected: the selection as kernels walk it.
        in_order: K and V in block order.
    """

    request: AttendRequest
    selected: Selected
    in_order: tuple[Tensor, Tensor]

    @property
    def bare(self) -> AttendRequest:
        return replace(self.request, tail=None)


def executed_of(request: AttendRequest) -> float:
    """Share of all token pairs that a request computes exactly."""
    return float(Attention(request.q, request, "").density())


def expected_of(request: AttendRequest, rows: Tensor) -> Tensor:
    """Rows (block order) of a request by its definition: (H, rows, D)."""
    tables = request.tables
    kept = request.keep[0][:, tables.q.of_token[rows]]
    tokens, block_of_key = tables.perm[rows], tables.k.of_token[tables.inverse]
    return defined_rows((request.q, request.k, request.v), tokens, request.scale, kept, block_of_key, request.tail)


def inputs_of(qkv: QKV, tables: LayoutTables, policy: Policy, key_bias: Tensor | None = None) -> RuleCall:
    """A call as the core hands it to a backend."""
    return RuleCall(*qkv, tables, policy, policy.of(qkv[0].shape[1]), qkv[0].shape[3] ** -0.5, key_bias)


def make_call(qkv: QKV, tables: LayoutTables, policy: Policy, key_bias: Tensor | None = None) -> Call:
    """prepare and select, as the backend calls them, of all heads at once."""
    inputs = inputs_of(qkv, tables, policy, key_bias)
    draft, tail, in_order = launch.prepare(inputs, copy=True)
    keep, selected = select_scores(raw_logits(draft, tables, inputs.scale), tables, policy)
    assert in_order is not None
    return Call(AttendRequest.of(inputs, keep, tail), selected, in_order)


def shuffled(selected: Selected) -> Selected:
    """The same lists in random order."""
    lists = selected.lists
    columns = torch.arange(lists.shape[-1], device=lists.device)
    key = torch.rand(lists.shape, device=lists.device)
    # What is behind a list is no part of it.
    key = torch.where(columns < selected.counts[..., None], key, columns + 1.0)
    return selected._replace(lists=lists.gather(-1, key.argsort(-1)))


def our_rows(shape: Shape, qkv: QKV, density: float, variant: Variant, clock: Clock) -> Iterator[Row]:
    """The whole call first, then its parts, then what the other tails and block sizes would give.

    The parts of selection and preparation are the same for every variant and are measured with the required one.
    """
    blank = Row("ours", names.WHOLE, "failed", shape.name, variant.name, density, io_bytes=shape.bytes)
    why = variant.refuses(qkv[0].device, shape.dim)
    if why is not None:
        yield replace(blank, status="skipped", note=why)
        return
    yield from guarded(blank, _rows(shape, qkv, density, variant, clock, blank), clock)


def _rows(shape: Shape, qkv: QKV, density: float, variant: Variant, clock: Clock, blank: Row) -> Iterator[Row]:
    """`our_rows` of a variant that serves the call. Raises where setting up does: no row could be measured then."""
    q = qkv[0]
    policy, scale = Policy(density=density, tail=TAIL), shape.dim**-0.5
    tables = build_tables(shape.layout, q.device)
    rows = sampled(shape.tokens, shape.layout.grid.tokens).to(q.device)
    dense = defined_rows(qkv, tables.perm[rows], scale)
    limit = FULL_SIZE_LIMITS[q.dtype]

    def of(out: Tensor) -> Tensor:
        return out[0][:, tables.perm[rows]]

    def error(out: Tensor) -> float:
        return relative(of(out), dense)

    def whole(policy: Policy = policy) -> Tensor:
        return variant.run(inputs_of(qkv, tables, policy))[0]

    # What the backend does with its heads in groups is judged by the request it says this amounts to.
    _, asked = variant.run(inputs_of(qkv, tables, policy))
    executed, asked_truth = executed_of(asked), expected_of(asked, rows)
    del asked
    call = make_call(qkv, tables, policy)
    blank = replace(blank, executed=executed, flops=shape.flops * executed)
    truth, bare_truth = (expected_of(request, rows) for request in (call.request, call.bare))

    def measure(what: str, run: Callable[[], Tensor], expected: Tensor, limit: float = limit) -> Row:
        return measured(
            replace(blank, what=what),
            run,
            clock,
            off=lambda out: relative(of(out), expected),
            limit=limit,
            error=error,
            memory=True,
            poisons=q,
        )

    def attend(request: AttendRequest, selected: Selected | None = None, gathered: bool = False) -> Tensor:
        return variant.attend(request, selected or call.selected, None if gathered else call.in_order)

    def in_random_order() -> Iterator[Row]:
        selected = shuffled(call.selected)
        yield measure(names.SHUFFLED, lambda: attend(call.bare, selected), bare_truth)

    yield measure(names.WHOLE, whole, asked_truth)
    yield measure(names.ATTEND, lambda: attend(call.bare), bare_truth)
    yield measure(names.ATTEND_TAIL, lambda: attend(call.request), truth)
    yield from guarded(replace(blank, what=names.SHUFFLED), in_random_order(), clock)
    if variant.required:
        parts = replace(blank, what=names.PREPARE, flops=None)
        yield from guarded(parts, part_rows(parts, qkv, tables, policy, clock), clock)
    if variant.gathers:
        yield measure(names.GATHERED, lambda: attend(call.bare, gathered=True), bare_truth)
    if variant.required:
        for name in OTHER_TAILS:
            run = functools.partial(whole, replace(policy, tail=name))
            yield _tail_row(replace(blank, what=f"tail {name}"), run, error, clock)
        in_int8 = functools.partial(whole, replace(policy, bits=8))
        yield measure(names.INT8, in_int8, asked_truth, INT8_LIMIT)
    if shape.k_block != shape.q_block:
        del call
        yield coarse_row(shape, qkv, density, variant, clock, blank, error)


def _tail_row(row: Row, run: Callable[[], Tensor], error: Callable[[Tensor], float], clock: Clock) -> Row:
    """What another tail would err, at the same selection; its time is not of interest."""
    try:
        return replace(row, status="unmeasured", error=error(run()), note="error only")
    except Exception as failure:
        return after_failure(row, failure, clock)


def part_rows(blank: Row, qkv: QKV, tables: LayoutTables, policy: Policy, clock: Clock) -> Iterator[Row]:
    """prepare, prepare without a tail, and select. What prepare makes is compared where whole calls are."""
    call = inputs_of(qkv, tables, policy)
    bare = inputs_of(qkv, tables, replace(policy, tail="none"))
    draft, _, _ = launch.prepare(call, copy=True)
    parts: dict[str, Callable[[], object]] = {
        names.PREPARE: lambda: launch.prepare(call, copy=True),
        names.SELECT: lambda: select_scores(raw_logits(draft, tables, call.scale), tables, policy),
        names.PREPARE_BARE: lambda: launch.prepare(bare, copy=True),
    }
    for what, run in parts.items():
        try:
            row = replace(blank, what=what)
            if what == names.SELECT:
                found = selection_difference(draft.of_heads(slice(0, 4)), tables, policy, call.scale)
                row = replace(row, note=found.note and f"of four heads, {found.note}")
                if found.wrong:
                    said = f"{found.wrong} block pairs of four heads are not those of the definition"
                    yield replace(row, status="wrong", note=said)
                    continue
            yield timed(row, run, clock, memory=True)
        except Exception as failure:
            yield after_failure(replace(blank, what=what), failure, clock)


def selection_difference(draft: Draft, tables: LayoutTables, policy: Policy, scale: float) -> Difference:
    """How the kernels' selection differs from the definition on the same scores."""
    scores = draft_logits(draft, tables, scale)
    return difference(scores, select_scores(scores, tables, policy)[0], tables, policy)


def select_scores(scores: Tensor, tables: LayoutTables, policy: Policy) -> tuple[Tensor, Selected]:
    """The kernels' selection, as the backend asks for it."""
    from draftattention.kernels.select import select

    ranking = ranking_of(policy)
    limits = ranking.limits(tables, policy, policy.of(scores.shape[1]).densities)
    return select(scores, forced_blocks(tables, policy), tables.geometry, ranking.form, limits)


def coarse_row(
    shape: Shape,
    qkv: QKV,
    density: float,
    variant: Variant,
    clock: Clock,
    blank: Row,
    error: Callable[[Tensor], float],
) -> Row:
    """attend with key blocks as large as query blocks, the form some peers need."""
    coarse = shape.with_blocks(shape.q_block, shape.q_block)
    row = replace(blank, what=names.COARSE)
    try:
        tables = build_tables(coarse.layout, qkv[0].device)
        call = make_call(qkv, tables, Policy(density=density, tail="none"))
        rows = sampled(shape.tokens, shape.layout.grid.tokens).to(qkv[0].device)
        executed, expected = executed_of(call.bare), expected_of(call.bare, rows)
    except Exception as failure:
        return after_failure(row, failure, clock)
    return measured(
        replace(row, executed=executed, flops=shape.flops * executed),
        lambda: variant.attend(call.bare, call.selected, call.in_order),
        clock,
        off=lambda out: relative(out[0][:, tables.perm[rows]], expected),
        limit=FULL_SIZE_LIMITS[qkv[0].dtype],
        error=error,
        memory=True,
    )
