"""The warp-specialised attend without a GPU: its binaries are specialised, its backend refuses what it cannot serve."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from draftattention.draftattn_core.backends.call_kind import CallKind
from draftattention.draftattn_core.backends.registry import NoBackendError, backends, choose_backend, prepare_backend
from draftattention.draftattn_core.backends.triton import machine
from draftattention.draftattn_core.backends.triton.hopper import HOPPER, UNPROVEN
from draftattention.draftattn_core.backends.triton.trust import Trust
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import Layout, build_tables
from draftattention.draftattn_core.method.policy import Policy, TailName
from draftattention.kernels import attend_hopper
from draftattention.kernels.attend_hopper import SPECIALISED_WARPS, WARPS
from draftattention.kernels.configs import attend_config, hopper_config
from draftattention.kernels.runtime import FUSED
from tests.kernels.calls import run_call
from tests.kernels.launches import Launches
from tools.aot.cases import attend_case
from tools.aot.cases_hopper import CLAIMS, all_cases, edge_case, representative_cases, tail_case, whole_case
from tools.aot.compile import Case, Planned, compile_case
from tools.aot.judge import judge

GPU = CallKind(torch.device("cuda", 0), torch.bfloat16, 128, 128, 64)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200 as far as refusals look at it, whose kernels pass their check."""
    monkeypatch.setattr(machine, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(HOPPER, "trust", Trust("its kernels for Hopper"))
    monkeypatch.setattr(HOPPER, "check", lambda kind, variant: None)


@pytest.mark.parametrize("planned", representative_cases(), ids=lambda planned: planned.case.name)
def test_the_binary_is_specialised_fits_and_keeps_to_its_registers(planned: Planned) -> None:
    result = compile_case(planned)
    assert judge(result).problems == ()
    assert set(result.wants) == {"HGMMA", "UTMALDG", "USETMAXREG"}
    # One group of four warps was asked for; the compiler made a group that fetches and two that multiply.
    assert (planned.case.warps, result.warps) == (WARPS, SPECIALISED_WARPS)
    # What 384 threads may hold at launch; the groups trade registers from there.
    assert result.registers * 32 * result.warps <= 65536


def test_a_kernel_that_is_not_specialised_does_not_pass_for_one() -> None:
    pointer = replace(attend_case(attend_config("sm_90", 128, 1), 128), claims=CLAIMS)
    lost = whole_case(128)
    # Buffers for one step only: nothing to fetch ahead, so the compiler ignores the request without a word.
    lost = replace(lost, constants={**lost.constants, "STAGES": 1}, stages=1)
    for case, missing in ((pointer, {"UTMALDG", "USETMAXREG"}), (lost, {"USETMAXREG"})):
        result = compile_case(Planned("sm_90", case))
        assert result.warps == case.warps
        assert {f"no {name} instruction" for name in missing} <= set(judge(result).problems)


def test_every_configuration_is_in_the_full_list() -> None:
    names = {planned.case.name for planned in all_cases()}
    assert len(names) == len(all_cases())
    assert {planned.case.name for planned in representative_cases()} <= names
    assert {tail_case(dim).name for dim in (64, 128)} | {whole_case(64, k_block=128).name} <= names
    with pytest.raises(ValueError, match="no warp-specialised kernel for head size 96"):
        hopper_config(96, 64, 0)


def test_auto_never_takes_it() -> None:
    assert {backend.name: backend.automatic for backend in backends()}["triton_hopper"] is False
    with pytest.raises(NoBackendError, match="Hopper GPUs \\(sm_90\\), not on cpu"):
        choose_backend("triton_hopper", replace(GPU, device=torch.device("cpu")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float32}, "float16 and bfloat16, not torch.float32"),
        ({"head_dim": 96}, "head sizes (64, 128), not 96"),
        ({"q_block": 64}, "query blocks of 128"),
        ({"k_block": 32}, "key blocks of (64, 128) tokens, not 128/32"),
        ({"device": torch.device("xpu", 0)}, "not on xpu"),
    ],
)
def test_what_has_no_kernel_is_named(hopper: None, change: dict[str, object], reason: str) -> None:
    assert HOPPER.refuses(GPU) is None
    assert reason in str(HOPPER.refuses(replace(GPU, **change)))  # type: ignore[arg-type]


def test_other_gpus_are_sent_to_the_other_kernels(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "architecture", lambda device: "sm_120")
    assert HOPPER.refuses(GPU) == "its kernels run on Hopper GPUs (sm_90), this is sm_120: use backend 'triton'"


@pytest.mark.parametrize(("version", "reason"), [("3.5.1", "3.6 or newer is needed"), ("3.6.0", None), ("4.0", None)])
def test_a_triton_that_cannot_specialise_is_named(
    hopper: None, monkeypatch: pytest.MonkeyPatch, version: str, reason: str | None
) -> None:
    monkeypatch.setattr(attend_hopper, "triton", SimpleNamespace(__version__=version))
    found = HOPPER.refuses(GPU)
    assert found is None if reason is None else reason in str(found)


def test_a_triton_that_breaks_over_its_kernels_is_a_reason(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend_hopper, "triton", SimpleNamespace())
    assert "cannot be imported: AttributeError" in str(HOPPER.refuses(GPU))


def test_it_says_that_it_is_unproven_and_a_failed_check_is_its_reason(
    hopper: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert HOPPER.refuses(GPU) is None and HOPPER.refuses(GPU) is None
    assert [record.message for record in caplog.records] == [f"DraftAttention: {UNPROVEN.format('triton_hopper')}"]
    monkeypatch.setattr(HOPPER, "check", lambda kind, variant: "its output is off by 1.0")
    assert HOPPER.refuses(replace(GPU, k_block=128)) == "its output is off by 1.0"
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "does without its kernels for Hopper: its output is off by 1.0" in caplog.records[1].message


# Grid, extra tokens before and after, heads, batch: numbers that are 1, odd, and multiples of 16, in turns.
SHAPES = [((3, 9, 13), 7, 30, 2, 1), ((1, 8, 16), 0, 0, 1, 1), ((4, 8, 8), 0, 128, 16, 2), ((2, 7, 9), 1, 0, 7, 3)]


@pytest.mark.parametrize("tail", ["none", "linear1"])
def test_one_binary_per_kernel_for_all_shapes_and_it_is_the_one_compiled_here(
    launches: Launches, tail: TailName
) -> None:
    for grid, before, after, heads, batch in SHAPES:
        layout = Layout(TokenGrid(*grid), before, after)
        q, k, v = torch.empty(3, batch, layout.tokens, heads, 128, dtype=torch.bfloat16).transpose(2, 3)
        bias = torch.zeros(1, layout.extra)
        run_call(q, k, v, build_tables(layout), Policy(density=0.4, tail=tail), bias, backend=HOPPER)
    ours = {key for key in launches.binaries if key[0] in ("tail_kernel", "edge_kernel", "whole_kernel")}
    assert ours == {
        key_of(whole_case(128)),
        key_of(edge_case(128)),
        *([key_of(tail_case(128))] if tail != "none" else []),
    }
    assert len(launches.binaries) == len({name for name, _ in launches.binaries})


def key_of(case: Case) -> tuple[str, str]:
    """What `Launches` would note for a launch of exactly this case."""
    seen = []
    for name, kind in case.signature.items():
        aligned = kind.startswith("*") or name in case.aligned
        seen.append((kind, case.constants[name] if kind == "constexpr" else "D" if aligned else None))
    options = {"num_warps": case.warps, "num_stages": case.stages, **FUSED}
    return case.kernel.fn.__name__, f"{seen}{sorted(options.items())}"


def test_it_is_compiled_before_a_run_and_that_is_said(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HOPPER, "trust", Trust("its kernels for Hopper"))
    kind, told = replace(GPU, device=torch.device("cpu")), []
    for _ in range(2):
        prepare_backend("triton_hopper", kind, ("none",), report=told.append)
    assert [name for name, _ in launches.keys].count("whole_kernel") == 2
    assert [message.partition(",")[0] for message in told] == [
        "DraftAttention compiles and checks its kernels for Hopper"
    ] * 2
