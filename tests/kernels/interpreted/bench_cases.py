"""The kernel bench's rows of our own kernels with a stopped clock, and its checks, on a tiny call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import checks, child, graphs, ours
from benchmarks.kernels import row as names
from benchmarks.kernels.checks import Check, check_rows
from benchmarks.kernels.inputs import structured
from benchmarks.kernels.ours import our_rows
from benchmarks.kernels.plan import Shape
from benchmarks.kernels.row import Row
from benchmarks.kernels.timing import Clock, Timing
from benchmarks.kernels.variants import VARIANTS, Variant
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest, BackendFailure
from draftattention.draftattn_core.method.rules import rule_of
from draftattention.draftattn_core.method.rules.call import RuleCall
from draftattention.kernels.types import Selected

CPU = torch.device("cpu")
SHAPE = Shape("tiny", (2, 5, 9), 21, 1, 64, 32, 16)


class StoppedClock(Clock):
    def time(self, run: Callable[[], object]) -> Timing:
        run()
        return Timing(2.0, 0.1, 3)

    def extra_bytes(self, run: Callable[[], object]) -> float:
        return 7.0


def rows_of(variant: Variant) -> dict[str, Row]:
    qkv = structured(SHAPE, CPU, torch.float32)
    return {row.what: row for row in our_rows(SHAPE, qkv, 0.5, variant, StoppedClock(CPU))}


def by_reference(request: AttendRequest, *_: object) -> Tensor:
    return attend_reference(request)


def run_by_reference(call: RuleCall) -> tuple[Tensor, AttendRequest]:
    request = AttendRequest.of(call, rule_of(call.policy.method).select(call), call.tail)
    return attend_reference(request), request


# Interprets nothing but prepare and select.
QUICK = replace(VARIANTS["pointer"], backend="reference", run=run_by_reference, attend=by_reference)


def test_our_rows() -> None:
    rows = rows_of(VARIANTS["pointer"])
    timed = {what for what, row in rows.items() if row.status == "timed"}
    assert timed == {
        names.WHOLE,
        names.INT8,
        names.ATTEND,
        names.ATTEND_TAIL,
        names.SHUFFLED,
        names.GATHERED,
        names.COARSE,
        names.PREPARE,
        names.PREPARE_BARE,
        names.SELECT,
    }
    whole = rows[names.WHOLE]
    assert whole.executed is not None and 0.5 < whole.executed < 0.8 and whole.extra_bytes == 7.0
    assert whole.flops == 4 * whole.executed * 111**2 * 64
    assert whole.off is not None and whole.off < 1e-6
    codes = rows[names.INT8].off
    assert codes is not None and 1e-4 < codes < 2e-2
    assert whole.error < rows["tail none"].error  # type: ignore[operator]


def test_a_whole_call_of_ours_is_captured_and_replayed() -> None:
    def capture(run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        out = run()
        return lambda: out.copy_(run()), out

    row = graphs.replayed(
        Row("graph", "x", "failed"), VARIANTS["pointer"], SHAPE, "linear1", CPU, torch.float32, capture
    )
    assert row.status == "right"


def test_a_wrong_variant_gets_no_speed() -> None:
    right = VARIANTS["pointer"]

    def wrong(*arguments: object) -> Tensor:
        return right.attend(*arguments) * 1.001  # type: ignore[arg-type]

    def wrong_run(*arguments: object) -> tuple[Tensor, object]:
        out, request = right.run(*arguments)
        return out * 1.001, request

    rows = rows_of(replace(right, run=wrong_run, attend=wrong, required=False, gathers=False))  # type: ignore[arg-type]
    assert all(row.status == "wrong" and row.seconds is None for row in rows.values())
    assert rows[names.WHOLE].note.startswith("off by 1.0e-03")
    assert names.GATHERED not in rows and names.PREPARE not in rows


def test_a_check_tells_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Check("pointer", 64, "float32", 64, "none")
    right = VARIANTS["pointer"]
    (row,) = check_rows(check, CPU)
    assert row.status == "unmeasured" and row.off is not None and row.off < 2e-6

    def forgets_the_text(request: object, selected: Selected, in_order: object) -> Tensor:
        return right.attend(request, selected._replace(counts=selected.counts - 1), in_order)  # type: ignore[arg-type]

    monkeypatch.setitem(VARIANTS, "pointer", replace(right, attend=forgets_the_text))
    (row,) = check_rows(check, CPU)
    assert row.status == "wrong" and "attend, with text is off by" in row.note


def test_a_selection_that_is_wrong_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head trades its first kept pair for its first skipped one: exact counts, wrong pairs."""
    right = ours.select_scores

    def wrong(*arguments: Any, **options: Any) -> Any:
        keep, selected = right(*arguments, **options)
        head = keep[0, 0, :4, :8].flatten()
        pairs = torch.stack([head.nonzero()[0, 0], (~head).nonzero()[0, 0]])
        keep[0, 0, pairs // 8, pairs % 8] ^= True
        return keep, selected

    monkeypatch.setattr(ours, "select_scores", wrong)
    assert rows_of(QUICK)[names.SELECT].status == "wrong"
    monkeypatch.setitem(VARIANTS, "pointer", QUICK)
    (row,) = check_rows(Check("pointer", 64, "float32", 64, "none"), CPU)
    assert row.status == "wrong" and "selection with text: " in row.note


def test_what_raises_in_the_middle_costs_its_own_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(call: RuleCall) -> tuple[Tensor, AttendRequest]:
        if call.policy.tail == "linear2":
            raise BackendFailure("out of resources")
        return run_by_reference(call)

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory for shuffled lists")

    monkeypatch.setattr(ours, "shuffled", no_memory)
    rows = rows_of(replace(QUICK, run=run))
    failed = {what: row.note for what, row in rows.items() if row.status == "failed"}
    assert failed == {
        "tail linear2": "BackendFailure: out of resources",
        names.SHUFFLED: "OutOfMemoryError: no memory for shuffled lists",
    }
    assert rows[names.COARSE].status == rows[names.PREPARE].status == rows[names.ATTEND_TAIL].status == "timed"


def test_a_set_up_that_raises_leaves_the_next_density_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = ours.defined_rows, []

    def defined_rows(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no memory")
        return right(*arguments)

    monkeypatch.setattr(ours, "defined_rows", defined_rows)
    variant = replace(QUICK, required=False, gathers=False)
    first, *others = child._our_rows(SHAPE, torch.float32, [0.5, 0.25], variant, StoppedClock(CPU))
    assert (first.what, first.status, first.density) == (names.WHOLE, "failed", 0.5)
    assert {row.density for row in others} == {0.25} and all(row.status != "failed" for row in others)


def test_a_check_that_raises_says_what_it_had_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> tuple[Tensor, Tensor]:
        raise BackendFailure("out of resources")

    monkeypatch.setattr(checks, "shuffled", raises)
    (row,) = check_rows(Check("pointer", 64, "float32", 64, "none"), CPU)
    assert row.status == "failed" and row.note == "raised after 1 comparisons: BackendFailure: out of resources"


def test_a_variant_that_refuses_says_why() -> None:
    refusing = replace(VARIANTS["pointer"], refuses=lambda device, dim: "needs sm_90")
    rows = rows_of(refusing)
    assert [(row.status, row.note) for row in rows.values()] == [("skipped", "needs sm_90")]
