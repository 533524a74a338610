"""What the backend `triton` does when a kernel fails, when threads or GPUs share it, and on which stream it runs."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from draftattention.draftattn_core.attention import Attention, attend
from draftattention.draftattn_core.backends import registry
from draftattention.draftattn_core.backends.call_kind import CallKind, Variant
from draftattention.draftattn_core.backends.registry import NoBackendError
from draftattention.draftattn_core.backends.request import OUT_OF_MEMORY, BackendFailure
from draftattention.draftattn_core.backends.triton import launch
from draftattention.draftattn_core.backends.triton.hopper import HOPPER
from draftattention.draftattn_core.backends.triton.pointer import POINTER
from draftattention.draftattn_core.backends.triton.trust import Trust, kernel_key
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.run.report import DenseReason, Position
from draftattention.draftattn_core.run.run import Run
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.settings import Settings
from draftattention.kernels import attend_pointer, prepare, select
from draftattention.kernels.runtime import on_device
from tests.kernels.calls import run_call
from tests.kernels.launches import Launches

LAYOUT = Layout(TokenGrid(3, 5, 7), q_block=16, k_block=16)
GPU = CallKind(torch.device("cuda", 0), torch.bfloat16, 128, 128, 64)

ERRORS = {
    "compile error": CompilationError("the source", None, "no"),
    "out of shared memory": OutOfResources(232448, 101376, "shared memory"),
    # Triton's passes, its driver and its search for a C compiler raise plain errors.
    "a plain error of the compiler": RuntimeError("Failed to find C compiler"),
}


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch) -> Trust:
    """No verdicts yet, and none left to other tests."""
    fresh = Trust("its Triton kernels")
    monkeypatch.setattr(POINTER, "trust", fresh)
    return fresh


@pytest.fixture
def first_choice(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes the kernels on the CPU, as it does on a GPU."""
    known = [replace(x, not_automatic_on=()) if x.name == "triton" else x for x in registry.backends()]
    monkeypatch.setattr(registry, "backends", lambda: tuple(known))


def call(**options: Any) -> Attention:
    q, k, v = torch.randn(3, 1, 2, LAYOUT.tokens, 64)
    return attend(q, k, v, LAYOUT, Policy(density=0.4), **options)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_kernel_that_fails_gives_way_with_one_message(
    launches: Launches,
    first_choice: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Launches, "run", fail)
    with caplog.at_level(logging.INFO):
        assert {call().backend for _ in range(4)} == {"torch"}
    (record,) = caplog.records
    assert "does without its Triton kernels" in record.getMessage() and record.exc_info is None
    with pytest.raises(NoBackendError, match=type(error).__name__):
        call(backend="triton")


def test_an_error_that_is_not_the_compilers_is_not_hidden(
    launches: Launches, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("a bug of ours")

    monkeypatch.setattr(select, "select", fail)
    with pytest.raises(ValueError, match="a bug of ours"):
        call(backend="triton")
    assert POINTER.refuses(replace(GPU, device=torch.device("cpu"))) is None


def test_memory_of_a_failed_call_is_free_when_the_next_backend_starts(
    launches: Launches, first_choice: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Tensor]] = []
    prepared = launch.prepare_copies

    def remember(*args: Any, **options: Any) -> Any:
        found = prepared(*args, **options)
        made.extend(weakref.ref(x) for x in found[2])
        return found

    def fail(*_: object, **__: object) -> None:
        raise OutOfResources(232448, 101376, "shared memory")

    alive: list[int] = []
    chosen = [
        replace(x, attend=lambda request: (alive.append(sum(y() is not None for y in made)), request.q)[1])
        if x.name == "torch"
        else x
        for x in registry.backends()
    ]
    monkeypatch.setattr(registry, "backends", lambda: tuple(chosen))
    monkeypatch.setattr(launch, "prepare_copies", remember)
    monkeypatch.setattr(POINTER, "launch", fail)
    assert call().backend == "torch"
    assert len(made) == 2 and alive == [0]


def test_short_memory_during_the_check_is_no_verdict(trust: Trust) -> None:
    def short() -> None:
        raise OUT_OF_MEMORY("busy")

    with pytest.raises(OUT_OF_MEMORY):
        trust.reason_against("kernel", short)
    assert trust.reason_against("kernel", lambda: "wrong") == "wrong"


SHORT = {
    "torch": OUT_OF_MEMORY("busy"),
    # Of Triton's launchers.
    "CUDA": RuntimeError("Triton Error [CUDA]: out of memory"),
    "HIP": RuntimeError("Triton Error [HIP]:  Code: 2, Messsage: out of memory"),
}


@pytest.mark.parametrize("error", SHORT.values(), ids=SHORT)
def test_short_memory_leaves_the_check_as_what_it_is(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def short(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(launch, "prepare_copies", short)
    with pytest.raises(OUT_OF_MEMORY):
        POINTER.check(replace(GPU, device=torch.device("cpu")), Variant())


@pytest.mark.parametrize("backend", ["triton", "triton_hopper"])
@pytest.mark.parametrize("error", SHORT.values(), ids=SHORT)
def test_short_memory_during_a_launch_is_not_the_compilers(
    launches: Launches, trust: Trust, monkeypatch: pytest.MonkeyPatch, backend: str, error: Exception
) -> None:
    def short(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(HOPPER, "trust", trust)
    monkeypatch.setattr(Launches, "run", short)
    with pytest.raises(OUT_OF_MEMORY):
        call(backend=backend)
    assert set(trust.verdicts.values()) == {None}


def test_a_run_that_is_short_of_memory_goes_dense_call_by_call(
    launches: Launches, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object, **__: object) -> None:
        raise SHORT["CUDA"]

    run = Run(Settings(schedule=constant(0.4), backend="triton"))
    q, k, v = torch.zeros(3, 1, 2, LAYOUT.tokens, 64)

    def serve() -> None:
        run.calls.attention(q, k, v, grid=LAYOUT.grid, position=Position(0, 0.0, 0, 1), dense=lambda: q)

    with monkeypatch.context() as full_card:
        full_card.setattr(Launches, "run", short)
        serve()
    assert run.report.calls_dense() == {DenseReason.OUT_OF_MEMORY.value: 1}
    assert set(trust.verdicts.values()) == {None} and not launches.keys
    serve()
    # What was launched has written nothing, so the output may be anything: that it was launched is what counts.
    assert launches.keys


def test_threads_wait_for_one_check_and_share_its_verdict(trust: Trust) -> None:
    count, begun, release = 8, threading.Semaphore(0), threading.Event()
    checks: list[int] = []

    def slow() -> str:
        checks.append(threading.get_ident())
        release.wait(10)
        return "its output is off"

    def ask(_: int) -> str | None:
        begun.release()
        return trust.reason_against("kernel", slow)

    with ThreadPoolExecutor(count) as pool:
        verdicts = pool.map(ask, range(count))
        for _ in range(count):
            assert begun.acquire(timeout=10)
        release.set()
        assert list(verdicts) == ["its output is off"] * count
    assert len(checks) == 1


def test_each_gpu_has_its_verdict_and_the_current_one_needs_no_number(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    keys = [kernel_key(torch.device(name), 128) for name in ("cuda:0", "cuda:1", "cuda")]
    assert keys[0] != keys[1] == keys[2]
    trust.withdraw(keys[0], "broken")
    assert [trust.reason_against(key, lambda: None) for key in keys] == ["broken", None, None]


def test_several_threads_call_at_once(launches: Launches, trust: Trust) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: call(backend="triton").backend, range(8)))
    assert found == ["triton"] * 8


def test_launches_go_to_the_device_of_their_tensors_and_its_current_stream(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton launches on the current stream of the current device: every launch has that of q, k and v made current."""
    made_current: list[Tensor] = []

    @contextlib.contextmanager
    def current(x: Tensor) -> Iterator[None]:
        made_current.append(x)
        yield
        made_current.pop()

    launched: list[bool] = []
    for module in (attend_pointer, prepare, select):
        monkeypatch.setattr(module, "on_device", current)
    note = Launches.run
    monkeypatch.setattr(
        Launches, "run", lambda *args, **options: (launched.append(bool(made_current)), note(*args, **options))[1]
    )
    tables = build_tables(Layout(TokenGrid(2, 8, 16)))
    q, k, v = torch.zeros(3, 1, 2, 256, 128, dtype=torch.bfloat16)
    _, request = run_call(q, k, v, tables, Policy(density=0.4, method="head"))
    POINTER.attend(request)
    # Every kernel of both calls: two that prepare, the selection's, the list's, `attend` twice.
    assert len({name for name, _ in launches.keys}) == len(launches.binaries) - 1 == 9 and all(launched)
    entered = on_device(SimpleNamespace(device=torch.device("cuda", 1)))  # type: ignore[arg-type]
    assert isinstance(entered, torch.cuda.device) and entered.idx == 1


def test_small_values_reach_the_device_without_a_copy_that_waits(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal for all heads, they are filled in on the device; else they go by pinned memory (`per_head`)."""
    tables = build_tables(LAYOUT)
    q, k, v = torch.zeros(3, 1, 2, LAYOUT.tokens, 64, dtype=torch.bfloat16)

    def from_the_host(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was made from numbers of the host")

    monkeypatch.setattr(torch, "tensor", from_the_host)
    for method in ("row", "head", "top_p", "draft"):
        run_call(q, k, v, tables, Policy(density=0.4, method=method))


def test_a_failure_says_which_kernel_and_why(launches: Launches, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutOfResources(232448, 101376, "shared memory")

    monkeypatch.setattr(Launches, "run", fail)
    q, k, v = torch.zeros(3, 1, 2, LAYOUT.tokens, 64, dtype=torch.bfloat16)
    with pytest.raises(BackendFailure, match=r"does not run on cpu: OutOfResources: .*shared memory"):
        run_call(q, k, v, build_tables(LAYOUT), Policy())
    reason = POINTER.check(replace(GPU, device=torch.device("cpu")), Variant())
    assert reason is not None and reason.startswith("a kernel does not run on cpu: OutOfResources")


def test_each_variant_is_judged_by_itself(
    launches: Launches, trust: Trust, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A tail whose kernels fail takes those of no other tail with it, mid-run included."""
    kind = replace(GPU, device=torch.device("cpu"))
    asked: list[Variant] = []
    monkeypatch.setattr(POINTER, "under_test", lambda device: False)
    monkeypatch.setattr(POINTER, "check", lambda kind, variant: asked.append(variant))
    tails = [replace(kind, variants=(Variant(tail=tail),)) for tail in ("mean", "linear2")]
    assert [POINTER.refuses(x) for x in (*tails, *tails)] == [None] * 4
    assert asked == [Variant(tail="mean"), Variant(tail="linear2")]

    def fail(*_: object, **__: object) -> None:
        raise OutOfResources(232448, 101376, "shared memory")

    monkeypatch.setattr(Launches, "run", fail)
    layout = Layout(TokenGrid(2, 8, 16))
    q, k, v = torch.zeros(3, 1, 2, layout.tokens, 128, dtype=torch.bfloat16)
    with pytest.raises(BackendFailure):
        run_call(q, k, v, build_tables(layout), Policy(tail=("mean", "linear2")))
    assert POINTER.refuses(tails[0]) is None and "shared memory" in str(POINTER.refuses(tails[1]))
    assert len(caplog.records) == 1 and asked == [Variant(tail="mean"), Variant(tail="linear2")]


def test_kernels_that_gather_are_checked_when_they_are_asked_for_and_take_no_others_with_them(
    launches: Launches, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(POINTER, "under_test", lambda device: False)
    checked: list[Variant] = []

    def wrong(kind: CallKind, variant: Variant) -> str:
        checked.append(variant)
        return "its output is off by 1.0"

    monkeypatch.setattr(POINTER, "check_gathered", wrong)
    result = call(backend="triton")
    assert "list_kernel" not in {name for name, _ in launches.keys} and not checked
    for _ in range(2):
        with pytest.raises(BackendFailure, match="off by 1.0"):
            POINTER.attend(result.request)
    assert checked == [Variant("head", "linear1")]
    assert call(backend="triton").backend == "triton"
