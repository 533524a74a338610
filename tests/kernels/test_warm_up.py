"""Compiling before the first block: what is compiled, once, what is said of it, and that nothing is left for later."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends import registry
from draftattention.draftattn_core.backends.call_kind import CallKind, Variant, variants_of
from draftattention.draftattn_core.backends.registry import (
    choose_backend,
    passed_over,
    prepare_backend,
    tails_served,
    without_codes,
)
from draftattention.draftattn_core.backends.request import OUT_OF_MEMORY
from draftattention.draftattn_core.backends.triton.pointer import POINTER
from draftattention.draftattn_core.backends.triton.trust import Trust
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import TAILS, Method, Policy
from draftattention.draftattn_core.run.events import Waiting
from draftattention.draftattn_core.run.report import DenseReason, Position
from draftattention.draftattn_core.run.run import Run
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.settings import Settings
from tests.core.cases import RANKED
from tests.kernels.calls import run_call
from tests.kernels.launches import Launches

PROBLEM = CallKind(torch.device("cpu"), torch.bfloat16, 64, 128, 64)


@pytest.fixture(autouse=True)
def trust(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> Trust:
    """Kernels that nobody has used yet, and that are noted instead of run."""
    fresh = Trust("its Triton kernels")
    monkeypatch.setattr(POINTER, "trust", fresh)
    return fresh


def of(policy: Policy, biased: bool = False) -> CallKind:
    return replace(PROBLEM, variants=variants_of(policy, biased))


def call(policy: Policy, heads: int, biased: bool) -> None:
    layout = Layout(TokenGrid(5, 8, 11), 3, 60)
    q, k, v = torch.zeros(3, 1, layout.tokens, heads, 64, dtype=torch.bfloat16).transpose(2, 3)
    bias = torch.zeros(1, layout.extra) if biased else None
    run_call(q, k, v, build_tables(layout), policy, bias, 0.1)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("method", RANKED)
def test_nothing_is_left_to_compile(launches: Launches, method: Method, biased: bool) -> None:
    policy = Policy(density=0.3, method=method)
    prepare_backend("triton", of(policy, biased), TAILS)
    compiled = launches.binaries
    for tails in [("mean", "mean"), ("none", "none"), ("linear2", "none"), ("mean", "linear0"), ("linear1", "linear0")]:
        call(replace(policy, tail=tails, tail_gain=(0.5, 0.0)), 2, biased)
    assert launches.binaries == compiled


def test_a_run_whose_tail_is_fixed_compiles_that_one_only(launches: Launches) -> None:
    told: list[str] = []
    prepare_backend("triton", of(Policy(tail="mean")), report=told.append)
    assert len(told) == 1 and "compiles and checks its Triton kernels, 1 of 1 (tail mean)" in told[0]
    compiled = launches.binaries
    assert len(compiled) == len({name for name, _ in compiled})
    # What a run takes and no more: the check needs no kernels of its own.
    launches.keys.clear()
    call(Policy(density=0.3, tail="mean"), 2, False)
    assert launches.binaries == compiled


def test_it_is_done_once(launches: Launches) -> None:
    told: list[str] = []
    for _ in range(2):
        prepare_backend("triton", of(Policy()), TAILS, report=told.append)
    assert len(told) == len(TAILS)
    assert "5 of 5" in told[-1]


def test_kernels_that_do_not_compile_are_said_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutOfResources(232448, 101376, "shared memory")

    monkeypatch.setattr(Launches, "run", fail)
    prepare_backend("triton", of(Policy()), TAILS)
    assert len(caplog.records) == 1
    assert "shared memory" in str(POINTER.refuses(of(Policy())))


def refusing(wrong: Variant) -> Callable[[CallKind, Variant], str | None]:
    return lambda kind, variant: f"its output is off by 1.0 ({variant})" if variant == wrong else None


def test_a_tail_that_fails_is_not_offered_and_the_others_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(POINTER, "check", refusing(Variant("head", "linear0")))
    kind, told = of(Policy()), []
    prepare_backend("triton", kind, TAILS, report=told.append)
    assert len(told) == len(TAILS) and POINTER.refuses(kind) is None
    assert tails_served("triton", kind, TAILS) == ("none", "mean", "linear1", "linear2")
    # Where heads have tails of their own, one that fails is one too many.
    mixed = of(Policy(tail=("mean", "linear0")))
    assert "tail linear0" in str(POINTER.refuses(mixed))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert tails_served("torch", kind, TAILS) == TAILS


def test_a_run_whose_own_tail_fails_compiles_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POINTER, "check", refusing(Variant("head", "linear1")))
    told: list[str] = []
    prepare_backend("triton", of(Policy()), TAILS, report=told.append)
    assert len(told) == 1 and "off by 1.0" in str(POINTER.refuses(of(Policy())))
    assert POINTER.refuses(of(Policy(tail="mean"))) is None


def test_the_probe_chooses_among_the_tails_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    served = ("none", "mean", "linear0", "linear1")
    monkeypatch.setattr("draftattention.draftattn_core.run.sparse_calls.tails_served", lambda name, kind, tails: served)
    run = Run(Settings(schedule=constant(0.3), auto_tail=True))
    serve(run, 0.0)
    assert tuple(run.report.tail_errors[0]) == served


def test_backends_without_kernels_are_ready() -> None:
    told: list[str] = []
    prepare_backend("auto", PROBLEM, report=told.append)
    assert not told


def serve(run: Run, progress: float) -> None:
    q, k, v = torch.randn(3, 1, 2, 3 * 9 * 13, 64)
    run.calls.attention(
        q, k, v, grid=TokenGrid(3, 9, 13), position=Position(0, progress, 0, 1), dense=lambda: q.clone()
    )


def test_a_run_waits_before_its_first_block_though_that_is_dense(
    launches: Launches, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(Settings(schedule=constant(0.3, warmup=0.5), backend="triton", auto_gain=False))
    told: list[str] = []
    run.events.subscribe(Waiting, lambda event: told.append(event.message))
    with caplog.at_level(logging.INFO):
        serve(run, 0.0)
    assert run.report.calls_dense() == {DenseReason.SCHEDULE.value: 1}
    assert len(told) == 1 and [record.getMessage() for record in caplog.records] == told
    before = launches.binaries
    assert before
    serve(run, 0.1)
    run_call(*torch.zeros(3, 1, 2, 351, 64), build_tables(Layout(TokenGrid(3, 9, 13))), Policy(), None, 0.1)
    assert launches.binaries == before and len(told) == 1


@pytest.mark.parametrize("changes", [{"min_tokens": 10_000}, {"backend": "torch"}])
def test_a_run_that_will_not_use_the_kernels_does_not_wait(launches: Launches, changes: dict[str, Any]) -> None:
    run = Run(Settings(**{"schedule": constant(0.3, warmup=0.5), "backend": "triton", **changes}))
    serve(run, 0.0)
    assert not launches.keys


def test_a_preparation_without_memory_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[CallKind] = []

    def prepare(name: str, kind: CallKind, *_: object, **__: object) -> None:
        tried.append(kind)
        if len(tried) == 1:
            raise OUT_OF_MEMORY("none left")

    monkeypatch.setattr("draftattention.draftattn_core.run.ready.prepare_backend", prepare)
    run = Run(Settings(schedule=constant(0.3, warmup=0.5), min_tokens=0))
    for _ in range(3):
        serve(run, 0.0)
    assert len(tried) == 2


def test_a_preparation_that_fails_is_left_to_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr("draftattention.draftattn_core.run.ready.prepare_backend", fail)
    run = Run(Settings(schedule=constant(0.3)))
    serve(run, 0.0)
    assert run.report.calls_sparse == 1


def test_a_run_on_a_gpu_says_once_why_a_slower_backend_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "Triton is not installed (on Windows: pip install triton-windows)"
    known = [replace(x, refuses=lambda _: missing) if x.name == "triton" else x for x in registry.backends()]
    monkeypatch.setattr(registry, "backends", lambda: tuple(known))
    gpu = replace(PROBLEM, device=torch.device("cuda", 0))
    assert passed_over("torch", gpu) == f"backend torch serves this run, not the faster triton: {missing}"
    assert passed_over("triton", gpu) is None
    assert passed_over("torch", PROBLEM) is None


class TestInt8Scores:
    """They have kernels of their own, whose failure costs no more than them."""

    def test_nothing_is_left_to_compile(self, launches: Launches) -> None:
        prepare_backend("triton", of(Policy()), ("mean",), codes="8")
        compiled = launches.binaries
        for bits in ((8, 8), (16, 16)):
            call(Policy(density=0.3, bits=bits), 2, False)
        assert launches.binaries == compiled

    def test_nobody_compiles_them_unasked_or_where_they_are_not_faster(self, launches: Launches) -> None:
        for codes in ("16", "auto"):
            prepare_backend("triton", of(Policy()), codes=codes)
        assert not any(name == "attend_kernel" and "i8" in key for name, key in launches.binaries)

    def test_kernels_that_fail_their_check_leave_16_bits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(POINTER, "check", refusing(Variant("head", "linear1", bits=8)))
        prepare_backend("triton", of(Policy()), codes="8")
        assert POINTER.refuses(of(Policy())) is None
        pointer = choose_backend("triton", of(Policy()))
        assert "8-bit scores" in str(without_codes(pointer, of(Policy())))
        assert without_codes(pointer, of(Policy(tail="mean"))) is None

    def test_kernels_that_fail_in_a_call_leave_16_bits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = Launches.run

        def fail(launches: Launches, kernel: JITFunction, *args: Any, **kwargs: Any) -> None:
            if kernel.fn.__name__ == "attend_kernel" and args[1].dtype == torch.int8:
                raise OutOfResources(232448, 101376, "shared memory")
            right(launches, kernel, *args, **kwargs)

        monkeypatch.setattr(Launches, "run", fail)
        layout, policy = Layout(TokenGrid(5, 8, 11), 3, 60), Policy(density=0.3, bits=8)
        q, k, v = torch.zeros(3, 1, 2, layout.tokens, 64, dtype=torch.bfloat16)
        found = attend(q, k, v, layout, policy, backend="triton")
        assert found.backend == "triton" and found.codes() == 0.0
        kind = CallKind.of(q, layout.q_block, layout.k_block, policy, biased=False)
        assert POINTER.refuses(kind) is None and "shared memory" in str(POINTER.refuses(kind.with_bits(8)))
        assert attend(q, k, v, layout, policy, backend="triton").request.bits == ()
