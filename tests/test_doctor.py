"""The doctor tells right backends from wrong ones, and its advice names the exact package."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from draftattention.draftattn_core.backends.cpu.rows import attend_rows
from draftattention.draftattn_core.backends.registry import Backend
from draftattention.draftattn_core.doctor import diagnose as doctor
from draftattention.draftattn_core.doctor.machine import Accelerator, Machine, advice, install_command, minor

RTX_4090 = Accelerator("cuda:0", "NVIDIA GeForce RTX 4090", (8, 9), 24.0)
RTX_2080 = Accelerator("cuda:0", "NVIDIA GeForce RTX 2080 Ti", (7, 5), 11.0)
LINUX = Machine(
    system="Linux",
    system_detail="6.1 x86_64",
    python="3.12.4",
    python_path="/venv/bin/python",
    torch="2.10.0+cu128",
    cuda="12.8",
    torch_wants_triton="3.6.0",
    triton="3.6.0",
    triton_package="triton",
    compiler="/usr/bin/gcc",
    accelerators=(RTX_4090,),
)
WINDOWS = replace(
    LINUX,
    system="Windows",
    python_path=r"C:\ComfyUI\python_embeded\python.exe",
    torch_wants_triton=None,
    triton_package="triton-windows",
    compiler=None,
)


def serve_anything(problem: object) -> None:
    return None


def only(monkeypatch: pytest.MonkeyPatch, *known: Backend) -> doctor.Diagnosis:
    monkeypatch.setattr(doctor, "backends", lambda: known)
    return doctor.diagnose(["cpu"])


def test_the_backends_of_this_machine_are_right() -> None:
    diagnosis = doctor.diagnose(["cpu"])
    assert diagnosis.works
    ran = [check for check in diagnosis.checks if check.error is not None]
    assert {"torch"} <= {check.backend for check in ran}
    # Float32 arithmetic on some hundred keys: far below the limit, and not exactly the float64 reference.
    assert all(0 < check.error < 1e-5 for check in ran if check.dtype == "float32")
    assert diagnosis.chosen() == {"cpu": ran[0].backend}


def test_a_backend_that_forgets_the_tail_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    forgetful = Backend("forgetful", lambda request: attend_rows(replace(request, tail=None)), serve_anything)
    diagnosis = only(monkeypatch, forgetful)
    assert not diagnosis.works
    assert all(check.error > 20 * check.tolerance for check in diagnosis.checks)
    assert "forgetful" in diagnosis.advice[0] and "wrong results" in diagnosis.advice[0]
    assert "No backend works here" in diagnosis.text()


def test_a_backend_that_drops_the_linear_term_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_linear_term(request):
        return attend_rows(replace(request, tail=replace(request.tail, cov=None, u=None, w=None)))

    assert not only(monkeypatch, Backend("constant", without_linear_term, serve_anything)).works


def test_a_backend_that_returns_nan_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Backend("broken", lambda request: torch.full_like(request.q, torch.nan), serve_anything)
    diagnosis = only(monkeypatch, broken)
    assert not diagnosis.works and all(check.error == float("inf") for check in diagnosis.checks)


def test_refusals_and_exceptions_are_told_in_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(request):
        raise RuntimeError("ptxas fatal: unsupported\nmany more lines")

    diagnosis = only(
        monkeypatch,
        Backend("picky", attend_rows, lambda problem: "it needs a GPU of 2030"),
        Backend("explosive", explode, serve_anything),
        Backend("torch", attend_rows, serve_anything),
        Backend("hidden truth", explode, serve_anything, automatic=False),
        Backend("hidden compiler", explode, serve_anything, not_automatic_on=("cpu",)),
    )
    text = diagnosis.text()
    assert text.count("picky on cpu") == 1 and "will not run: it needs a GPU of 2030" in text
    assert "explosive on cpu in float32: will not run: it failed: RuntimeError: ptxas fatal: unsupported\n" in text
    assert "hidden" not in text
    assert diagnosis.works and diagnosis.chosen() == {"cpu": "torch"}


def test_the_command_prints_facts_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert f"PyTorch  {torch.__version__}" in text and "torch on cpu in float32: right" in text
    assert doctor.main(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["works"] and told["auto"]["cpu"] and all(check["right"] for check in told["checks"] if check["error"])


def test_the_command_ends_with_1_if_nothing_works(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(doctor, "backends", lambda: (Backend("none", attend_rows, lambda problem: "no"),))
    assert doctor.main([]) == 1


@pytest.mark.parametrize("machine", [LINUX, WINDOWS], ids=["linux", "windows"])
def test_a_machine_in_order_gets_no_advice(machine: Machine) -> None:
    assert advice(machine) == []
    assert "the version for this PyTorch" in dict(machine.facts())["Triton"]


@pytest.mark.parametrize(
    ("machine", "requirement"),
    [
        (LINUX, "triton==3.6.0"),
        (replace(LINUX, torch="2.15.0", torch_wants_triton="3.9"), "triton>=3.9,<3.10"),
        (WINDOWS, "triton-windows>=3.6,<3.7"),
        (replace(WINDOWS, torch="2.7.1+cu128"), "triton-windows>=3.3,<3.4"),
        (replace(WINDOWS, torch="2.13.0+cu130"), "triton-windows>=3.7,<3.8"),
    ],
)
def test_missing_triton_is_advised_as_the_pair_of_the_installed_torch(machine: Machine, requirement: str) -> None:
    (told,) = advice(replace(machine, triton=None, triton_package=None))
    assert told.endswith(f'"{machine.python_path}" -m pip install "{requirement}"')


def test_a_triton_of_another_torch_is_named_with_its_replacement() -> None:
    (told,) = advice(replace(WINDOWS, triton="3.2.0.post21"))
    assert "Triton 3.2.0.post21 does not belong to PyTorch 2.10" in told
    assert '"triton-windows>=3.6,<3.7"' in told


def test_an_unknown_torch_is_not_guessed_at() -> None:
    machine = replace(WINDOWS, torch="3.0.0", triton=None)
    assert install_command(machine) is None
    (told,) = advice(machine)
    assert "not known here" in told and "pip install" not in told


def test_turing_is_told_that_triton_left_it_behind() -> None:
    (told,) = advice(replace(LINUX, accelerators=(RTX_2080,), triton=None))
    assert "dropped this generation" in told and "pip install" not in told
    assert "pip install" in advice(replace(LINUX, accelerators=(RTX_2080, RTX_4090), triton=None))[0]


def test_a_broken_triton_and_a_portable_python_are_told_what_they_lack() -> None:
    told = advice(replace(WINDOWS, triton_error="ImportError: DLL load failed"))
    assert "DLL load failed" in told[0] and "vc_redist" in told[1]
    (told,) = advice(replace(WINDOWS, python_headers=False))
    assert "`include` and `libs`" in told and "3.12" in told
    (told,) = advice(replace(LINUX, compiler=None))
    assert "C compiler" in told


def test_without_a_gpu_the_reason_depends_on_the_build_of_torch() -> None:
    assert "built for the CPU only" in advice(replace(LINUX, cuda=None, torch="2.10.0+cpu", accelerators=()))[0]
    assert "sees no GPU" in advice(replace(LINUX, accelerators=()))[0]
    apple = Accelerator("mps", "Apple arm64")
    assert "portable backend" in advice(replace(LINUX, system="Darwin", cuda=None, accelerators=(apple,)))[0]


def test_rocm_is_sent_to_its_own_wheels_not_to_the_cuda_triton() -> None:
    machine = replace(LINUX, cuda=None, hip="6.4", triton=None, accelerators=(Accelerator("cuda:0", "RX 7900 XTX"),))
    (told,) = advice(machine)
    assert "ROCm" in told and "pip install" not in told


def test_minor_versions() -> None:
    assert minor("2.10.0+cu128") == "2.10" and minor("3.6") == "3.6"
