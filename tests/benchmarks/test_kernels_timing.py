"""What the kernel bench times, on a pretend GPU: right results only, the median of enough runs, graphs that replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.kernels import dense, graphs, timing
from benchmarks.kernels.inputs import structured
from benchmarks.kernels.measure import measured
from benchmarks.kernels.plan import FILL, TINY, Effort, Shape, measuring, once
from benchmarks.kernels.row import Row
from benchmarks.kernels.timing import Clock
from benchmarks.kernels.variants import VARIANTS, Variant
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.method.rules.call import RuleCall

CPU = torch.device("cpu")


class Event:
    """A CUDA event on a device where everything takes 2 ms."""

    now = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self) -> None:
        Event.now += 2.0
        self.at = Event.now

    def synchronize(self) -> None:
        assert self.at is not None

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None and end.at is not None
        return end.at - self.at


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 350)
    monkeypatch.setattr(timing, "_FILL_BYTES", 1 << 10)


def pretend_clock(**options: float) -> Clock:
    clock = Clock(CPU, **options)  # type: ignore[arg-type]
    clock.measures = True
    return clock


@pytest.mark.usefixtures("pretend")
def test_a_measurement_is_the_median_of_as_many_runs_as_fit() -> None:
    runs: list[int] = []
    found = pretend_clock(seconds=1e9, least=3, most=7).time(lambda: runs.append(1))
    assert found == timing.Timing(2e-3, 0.0, 7) and len(runs) == 9
    least = pretend_clock(seconds=0.0, least=3, most=7).time(lambda: None)
    assert least is not None and least.runs == 3
    assert pretend_clock().extra_bytes(lambda: None) == 250.0


@pytest.mark.usefixtures("pretend")
def test_the_plan_counts_every_run_of_a_measurement() -> None:
    runs: list[int] = []

    def run() -> Tensor:
        runs.append(1)
        return torch.ones(2, 2)

    row = Row("peer", "x", "failed", "S")
    effort = Effort(0.0, 3, 3, 1.0, everywhere=False)
    clock = pretend_clock(seconds=effort.seconds, least=effort.least, most=effort.most)
    measured(row, run, clock, off=lambda out: 0.0, limit=1.0, memory=True)
    each = once(1e15, "ours")
    assert measuring(1e15, "ours", effort) == pytest.approx(len(runs) * each + effort.least * FILL)


@pytest.mark.usefixtures("pretend")
def test_a_right_result_is_timed_and_a_wrong_one_is_not() -> None:
    row = Row("peer", "x", "failed", "S")
    one = torch.ones(2, 2)

    def with_error(off: float) -> Row:
        return measured(row, lambda: one, pretend_clock(), off=lambda out: off, limit=0.1, memory=True)

    right, wrong = with_error(0.05), with_error(0.2)
    assert (right.status, right.seconds, right.extra_bytes, right.off) == ("timed", 2e-3, 250.0, 0.05)
    assert (wrong.status, wrong.seconds) == ("wrong", None)
    nan = measured(row, lambda: one * torch.nan, pretend_clock(), off=lambda out: 0.0, limit=0.1)
    assert nan.status == "wrong" and nan.note == "not finite"


@pytest.mark.usefixtures("pretend")
def test_a_device_that_no_longer_answers_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = pretend_clock()

    def fails() -> Tensor:
        monkeypatch.setattr(torch.cuda, "synchronize", dead)
        raise RuntimeError("an illegal memory access was encountered")

    def dead(device: object = None) -> None:
        raise RuntimeError("the context is gone")

    with pytest.raises(RuntimeError, match="the context is gone"):
        measured(Row("peer", "x", "failed"), fails, clock, off=lambda out: 0.0, limit=1.0)


@pytest.mark.usefixtures("pretend")
def test_dense_rows_are_timed_for_the_backends_that_serve_the_call() -> None:
    shape = replace(TINY[0], heads=1)
    rows = list(dense.dense_rows(shape, structured(shape, CPU, torch.float32), pretend_clock()))
    found = {row.what: row.status for row in rows}
    # The CPU has one fused backend.
    assert found == {"cuDNN": "skipped", "flash": "timed", "efficient": "skipped"}


def problem() -> tuple[Shape, Variant]:
    def run(call: RuleCall) -> tuple[Tensor, AttendRequest]:
        out = scaled_dot_product_attention(call.q, call.k, call.v)
        return out, AttendRequest(call.q, call.k, call.v, call.tables, torch.ones(0), None, None, call.scale)

    return TINY[0], replace(VARIANTS["pointer"], run=run)


def again(run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A graph that does what it should."""
    out = run()
    return lambda: out.copy_(run()), out


def stale(run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A graph that read its inputs when it was captured."""
    return lambda: None, run()


def spoilt(run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    out = run()
    return lambda: out.copy_(run())[0, 0, 0].zero_(), out


@pytest.mark.parametrize(
    ("capture", "status", "said"),
    [(again, "right", ""), (stale, "wrong", "the captured call's output again"), (spoilt, "wrong", "of it differ")],
)
def test_a_graph_must_give_what_an_eager_call_gives(capture: graphs.Capture, status: str, said: str) -> None:
    shape, variant = problem()
    row = graphs.replayed(Row("graph", "x", "failed"), variant, shape, "none", CPU, torch.float32, capture)
    assert row.status == status and said in row.note


@pytest.mark.usefixtures("pretend")
def test_steps_of_a_model_are_timed_after_one_to_warm_up() -> None:
    pytest.importorskip("diffusers")
    from benchmarks.e2e import steps
    from benchmarks.e2e.models import MODELS

    seen: list[float] = []

    def step(timestep: float) -> Tensor:
        seen.append(timestep)
        return torch.ones(1)

    row = steps._timed(Row("step", "dense", "unmeasured"), step, [960.0, 928.0, 896.0], torch.device("cuda"))
    assert (row.status, row.seconds, row.extra_bytes) == ("timed", 2e-3, 350.0) and seen == [960.0, 928.0, 896.0]
    bad = steps._timed(row, lambda _: torch.tensor([torch.nan]), [1.0, 0.0], torch.device("cuda"))
    assert bad.status == "wrong"
    small = replace(MODELS["Wan 14B 720p"], attention=(2, 64, 64))
    order, said = steps.dense_order(small, CPU)
    assert [backend.name for backend in order] == ["FLASH_ATTENTION", "MATH"]
    assert said == "dense attention by the fastest of FLASH_ATTENTION 2 ms"
