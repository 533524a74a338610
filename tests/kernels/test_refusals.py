"""What the backend `triton` says where it cannot serve, and what happens when a kernel fails after all."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from importlib.abc import MetaPathFinder
from types import ModuleType, SimpleNamespace

import pytest
import torch

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends import registry
from draftattention.draftattn_core.backends.call_kind import CallKind, Variant
from draftattention.draftattn_core.backends.registry import Backend, NoBackendError, attend_torch, choose_backend
from draftattention.draftattn_core.backends.request import BackendFailure
from draftattention.draftattn_core.backends.triton import machine
from draftattention.draftattn_core.backends.triton import op as ops
from draftattention.draftattn_core.backends.triton.machine import triton_missing
from draftattention.draftattn_core.backends.triton.pointer import POINTER
from draftattention.draftattn_core.backends.triton.trust import Trust
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout
from draftattention.draftattn_core.method.policy import Policy

GPU = CallKind(torch.device("cuda", 0), torch.bfloat16, 128, 128, 64)

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200 as far as refusals look at it, whose kernels pass their check."""
    monkeypatch.setattr(machine, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(POINTER, "trust", Trust("kernels"))
    monkeypatch.setattr(POINTER, "check", lambda kind, variant: None)


def test_the_cpu_is_refused_and_auto_does_not_import_triton_for_it() -> None:
    kind = replace(GPU, device=torch.device("cpu"))
    assert choose_backend("auto", kind).name == "torch"
    with pytest.raises(NoBackendError, match="run on NVIDIA and AMD GPUs, not on cpu"):
        choose_backend("triton", kind)


@pytest.mark.parametrize(("version", "reason"), [(None, "not installed"), ("3.2.1", "3.2.1 is too old: 3.3")])
def test_a_missing_or_old_triton_is_named(monkeypatch: pytest.MonkeyPatch, version: str | None, reason: str) -> None:
    found = None if version is None else SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "triton", found)
    triton_missing.cache_clear()
    try:
        assert reason in str(POINTER.refuses(GPU))
    finally:
        triton_missing.cache_clear()


@needs_triton
@pytest.mark.parametrize(
    ("architecture", "version", "reason"),
    [
        ("sm_89", "3.3.1", "Triton 3.3.1 is too old: 3.5 or newer"),
        ("sm_120", "3.4.0", "Triton 3.4.0 is too old: 3.5 or newer"),
        ("sm_90", "3.9.0", "has no FP8 products summed in float16"),
        ("sm_89", "3.5.1", None),
        ("sm_120", "3.10.1", None),
    ],
)
def test_fp8_values_need_a_gpu_and_a_triton_that_have_their_product(
    hopper: None, monkeypatch: pytest.MonkeyPatch, architecture: str, version: str, reason: str | None
) -> None:
    assert triton_missing() is None
    monkeypatch.setattr(machine, "architecture", lambda device: architecture)
    monkeypatch.setattr("triton.__version__", version)
    found = registry.fp8_unwanted("triton", GPU)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize(
    "error",
    [
        OSError("libcuda.so: cannot open shared object file"),
        ImportError("DLL load failed while importing libtriton"),
        ModuleNotFoundError("No module named 'triton._C'", name="triton._C"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_triton_that_does_not_import_is_a_reason(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Broken(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "triton":
                raise error

    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    triton_missing.cache_clear()
    try:
        assert f"installed but broken: {type(error).__name__}: {error}" in str(POINTER.refuses(GPU))
    finally:
        triton_missing.cache_clear()


def test_a_triton_without_a_version_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    triton_missing.cache_clear()
    try:
        assert "installed but broken: AttributeError" in str(POINTER.refuses(GPU))
    finally:
        triton_missing.cache_clear()


@pytest.mark.parametrize("error", [ImportError("no triton"), OSError("libcuda.so")])
def test_without_a_triton_that_works_the_op_is_the_reference_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> bool:
        raise error

    monkeypatch.setattr(machine, "interpreted", fail)
    assert not machine.runs_on(torch.zeros(1))


@needs_triton
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float32}, "float16 and bfloat16, not torch.float32"),
        ({"head_dim": 96}, "head sizes (64, 128), not 96"),
        ({"k_block": 32}, "blocks of (64, 128) tokens, not 128/32"),
    ],
)
def test_what_has_no_kernel_is_named(hopper: None, change: dict[str, object], reason: str) -> None:
    assert POINTER.refuses(GPU) is None
    assert reason in str(POINTER.refuses(replace(GPU, **change)))  # type: ignore[arg-type]


@needs_triton
def test_an_unknown_architecture_is_named(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "architecture", lambda device: "sm_75")
    assert "no kernel configuration for sm_75" in str(POINTER.refuses(GPU))


@needs_triton
def test_a_failed_check_is_the_reason_and_runs_once_per_kernel(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[CallKind] = []

    def check(kind: CallKind, variant: Variant) -> str:
        asked.append(kind)
        return "its output is off by 1.0"

    monkeypatch.setattr(POINTER, "check", check)
    second_gpu = replace(GPU, device=torch.device("cuda", 1))
    assert [POINTER.refuses(p) for p in (GPU, GPU, second_gpu)] == ["its output is off by 1.0"] * 3
    assert asked == [GPU, second_gpu]


def test_a_kernel_that_fails_later_hands_the_call_to_the_next_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[str] = []

    def run(*_: object) -> None:
        failed.append("out of resource: shared memory")
        raise BackendFailure(failed[0])

    broken = Backend("broken", attend_torch, lambda _: failed[0] if failed else None, run=run)  # type: ignore[arg-type]
    others = registry.backends()
    monkeypatch.setattr(registry, "backends", lambda: (broken, *others))
    layout = Layout(TokenGrid(3, 5, 7), q_block=16, k_block=16)
    q, k, v = torch.randn(3, 1, 2, layout.tokens, 16)
    for _ in range(2):
        assert attend(q, k, v, layout, Policy()).backend == "torch"
    assert len(failed) == 1
    with pytest.raises(NoBackendError, match="shared memory"):
        attend(q, k, v, layout, Policy(), backend="broken")


@needs_triton
def test_kernels_are_found_beside_the_pack_whatever_its_name(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, pack.__name__.split(".")[0], ModuleType("host"))
    name = f"{pack.__name__}.kernels.attend_pointer"
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert not importlib.import_module(f"{pack.__name__}.draftattn_core.backends.triton.machine").interpreted()
    assert name in sys.modules


def test_two_copies_of_the_pack_have_ops_of_their_own(pack: ModuleType) -> None:
    other = importlib.import_module(f"{pack.__name__}.draftattn_core.backends.triton.op")
    assert other is not ops
    assert other.op_name("attend") != ops.op_name("attend") == "draftattention::attend"
    assert other.attend_into._qualname != ops.attend_into._qualname
