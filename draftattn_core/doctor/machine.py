"""What this machine has - system, PyTorch, Triton, devices - and what is worth changing about it. Asks no network."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from ..phrase import LIST, Joined, Phrase, Text

# Triton minor version each PyTorch minor version is built for. Up to 2.10: README of triton-windows; from 2.10 on:
# the requirement in PyTorch's own Linux wheels (read Nov 2026). Other pairs may import and fail when they compile.
TRITON_FOR_TORCH = {
    "2.4": "3.1",
    "2.5": "3.1",
    "2.6": "3.2",
    "2.7": "3.3",
    "2.8": "3.4",
    "2.9": "3.5",
    "2.10": "3.6",
    "2.11": "3.6",
    "2.12": "3.7",
    "2.13": "3.7",
    "2.14": "3.8",
    "2.15": "3.9",
}
# Names under which Triton is distributed; all of them install the module `triton`.
TRITON_PACKAGES = (
    "triton",
    "triton-windows",
    "pytorch-triton",
    "pytorch-triton-rocm",
    "triton-rocm",
    "pytorch-triton-xpu",
)
TURING = (7, 5)


@dataclass(frozen=True)
class Accelerator:
    """A device besides the CPU.

    Attributes:
        device: what torch calls it, such as "cuda:0" or "mps".
        name: what its maker calls it.
        capability: CUDA compute capability; None elsewhere (AMD included).
        memory_gib: its memory; None if unknown.
    """

    device: str
    name: str
    capability: tuple[int, int] | None = None
    memory_gib: float | None = None

    def text(self) -> str:
        """What it is, in words."""
        details: list[str] = []
        if self.capability is not None:
            number = f"{self.capability[0]}.{self.capability[1]}"
            details.append(Phrase("fact_capability", "compute capability {number}", number=number))
        if self.memory_gib is not None:
            details.append(f"{self.memory_gib:.0f} GiB")
        if not details:
            return f"{self.device}: {self.name}"
        return Phrase(
            "fact_device_with",
            "{device}: {name} ({details})",
            device=self.device,
            name=self.name,
            details=Joined(details, LIST),
        )

    def __str__(self) -> str:
        return str(self.text())


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        system: "Linux", "Windows" or "Darwin"; system_detail: release and architecture.
        python: version; python_path: the interpreter.
        torch: version with its build, such as "2.10.0+cu128"; cuda, hip: versions it was built for, or None.
        torch_wants_triton: Triton version in PyTorch's own requirements, such as "3.6.0" or "3.8" where it leaves the
            last number open; None if it has none.
        triton: version of the installed Triton, or None; triton_package: name it was installed under.
        triton_error: why importing it failed, or None.
        compiler: a C compiler Triton can use; python_headers: whether Python.h is there. Triton needs both where its
            package does not bring a compiler.
        accelerators: devices besides the CPU.
        kitchen: version of the installed comfy-kitchen, whose sparse attention needs no Triton, or None.
    """

    system: str
    system_detail: str
    python: str
    python_path: str
    torch: str
    cuda: str | None = None
    hip: str | None = None
    torch_wants_triton: str | None = None
    triton: str | None = None
    triton_package: str | None = None
    triton_error: str | None = None
    compiler: str | None = None
    python_headers: bool = True
    accelerators: tuple[Accelerator, ...] = ()
    kitchen: str | None = None

    @property
    def triton_wanted(self) -> str | None:
        """Triton minor version that belongs to this PyTorch, None if not known."""
        if self.torch_wants_triton is not None:
            return minor(self.torch_wants_triton)
        return TRITON_FOR_TORCH.get(minor(self.torch))

    def facts(self) -> list[tuple[str, str]]:
        """(label, value) lines for people."""
        device = Phrase("fact_device", "device")
        return [
            (Phrase("fact_system", "system"), f"{self.system} {self.system_detail}"),
            ("Python", Phrase("fact_at", "{version} at {path}", version=self.python, path=self.python_path)),
            ("PyTorch", self._torch_line()),
            ("Triton", self._triton_line()),
            ("kitchen", self._kitchen_line()),
            (device, "cpu"),
            *((device, one.text()) for one in self.accelerators),
        ]

    def _torch_line(self) -> str:
        built = f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.hip}" if self.hip else None
        if built is None:
            return Phrase("fact_no_toolkit", "{version}, built for no GPU toolkit", version=self.torch)
        return Phrase("fact_built_for", "{version}, built for {toolkit}", version=self.torch, toolkit=built)

    def _kitchen_line(self) -> str:
        if self.kitchen:
            return f"comfy-kitchen {self.kitchen}"
        return Phrase("fact_no_kitchen", "comfy-kitchen is not installed")

    def _triton_line(self) -> str:
        torch_version, wanted = minor(self.torch), self.triton_wanted
        if self.triton is None:
            if not wanted:
                return Phrase("fact_not_installed", "not installed")
            return Phrase(
                "fact_not_installed_pair",
                "not installed (PyTorch {torch} goes with Triton {wanted})",
                torch=torch_version,
                wanted=wanted,
            )
        line: str = self.triton
        if self.triton_package:
            line = Phrase("fact_package", "{version} (package {package})", version=line, package=self.triton_package)
        if self.triton_error:
            return Phrase(
                "fact_broken", "{found}, but it does not import: {error}", found=line, error=self.triton_error
            )
        if wanted is None:
            return Phrase(
                "fact_pair_unknown",
                "{found}; whether it goes with PyTorch {torch} is not known here",
                found=line,
                torch=torch_version,
            )
        if minor(self.triton) == wanted:
            return Phrase("fact_pair", "{found}, the version for this PyTorch", found=line)
        return Phrase(
            "fact_other_pair",
            "{found}, but PyTorch {torch} goes with Triton {wanted}",
            found=line,
            torch=torch_version,
            wanted=wanted,
        )


def minor(version: str) -> str:
    """ "2.10.0+cu128" -> "2.10"."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return f"{match[1]}.{match[2]}" if match else version


def inspect_machine() -> Machine:
    """Look around: reads versions and devices, imports Triton, changes nothing."""
    package, version, error = _triton()
    return Machine(
        system=platform.system(),
        system_detail=f"{platform.release()} {platform.machine()}",
        python=platform.python_version(),
        python_path=sys.executable,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        torch_wants_triton=_triton_torch_requires(),
        triton=version,
        triton_package=package,
        triton_error=error,
        compiler=os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang", "cl"))), None),
        python_headers=(Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(),
        accelerators=accelerators(),
        kitchen=_kitchen(),
    )


def _kitchen() -> str | None:
    try:
        return importlib.metadata.version("comfy-kitchen")
    except importlib.metadata.PackageNotFoundError:
        return None


def _triton() -> tuple[str | None, str | None, str | None]:
    """Package name, version and import error of the installed Triton."""
    package = version = None
    for name in TRITON_PACKAGES:
        try:
            package, version = name, importlib.metadata.version(name)
            break
        except importlib.metadata.PackageNotFoundError:
            package = None
    try:
        import triton

        return package, version or str(triton.__version__), None
    except ModuleNotFoundError as error:
        missing = f"ModuleNotFoundError: {error}"
        return package, version, missing if version else None
    except Exception as error:  # A broken installation may raise anything.
        return package, version or "unknown version", f"{type(error).__name__}: {error}"


def _triton_torch_requires() -> str | None:
    try:
        requirements = importlib.metadata.requires("torch") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        match = re.match(r"[\w-]*triton[\w-]*\s*\(?(==|~=)\s*(\d+\.\d+(?:\.\d+)?)", requirement)
        if match:
            return match[2] if match[1] == "==" else minor(match[2])
    return None


def accelerators() -> tuple[Accelerator, ...]:
    """CUDA or ROCm, Intel and Apple devices of this PyTorch."""
    found = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = None if torch.version.hip else (properties.major, properties.minor)
            found.append(Accelerator(f"cuda:{index}", properties.name, capability, properties.total_memory / 2**30))
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        for index in range(torch.xpu.device_count()):
            found.append(Accelerator(f"xpu:{index}", torch.xpu.get_device_name(index)))
    if torch.backends.mps.is_available():
        found.append(Accelerator("mps", f"Apple {platform.processor() or platform.machine()}"))
    return tuple(found)


def advice(machine: Machine) -> list[Text]:
    """What to do, most important first, with the exact package to install; empty if nothing is worth doing."""
    if not machine.accelerators:
        return [_no_device(machine)]
    gpus = [device for device in machine.accelerators if device.device.startswith("cuda")]
    if not gpus:
        kinds = Joined(sorted({device.device.split(":")[0] for device in machine.accelerators}), LIST)
        return [
            Phrase(
                "advice_portable",
                "Triton kernels run on NVIDIA and AMD GPUs; on {kinds} the portable backend `torch` is used.",
                kinds=kinds,
            )
        ]
    todo = _triton_advice(machine, gpus)
    if not todo and machine.triton is not None and not _has_toolchain(machine):
        todo += _toolchain_advice(machine)
    return todo


def _no_device(machine: Machine) -> Text:
    if machine.cuda is None and machine.hip is None and machine.system != "Darwin":
        return Phrase(
            "advice_cpu_build",
            "PyTorch {torch} is built for the CPU only. With an NVIDIA GPU install a CUDA build "
            "(see https://pytorch.org/get-started/locally); without one everything runs, but slowly.",
            torch=machine.torch,
        )
    return Phrase(
        "advice_no_gpu",
        "PyTorch sees no GPU. If there is one, check its driver (`nvidia-smi` or `rocm-smi` should list it); "
        "without one everything runs, but slowly.",
    )


def install_command(machine: Machine) -> str | None:
    """The pip line that brings the Triton of this PyTorch; None if which one that is is not known."""
    wanted = machine.triton_wanted
    if wanted is None:
        return None
    major, number = wanted.split(".")
    name = "triton-windows" if machine.system == "Windows" else "triton"
    exact = machine.torch_wants_triton
    if machine.system != "Windows" and exact is not None and exact.count(".") == 2:
        requirement = f"{name}=={exact}"
    else:
        requirement = f"{name}>={wanted},<{major}.{int(number) + 1}"
    return f'"{machine.python_path}" -m pip install "{requirement}"'


def _triton_advice(machine: Machine, gpus: list[Accelerator]) -> list[Text]:
    torch_version, wanted = minor(machine.torch), machine.triton_wanted
    turing_or_older = [device for device in gpus if device.capability is not None and device.capability <= TURING]
    if len(turing_or_older) == len(gpus):
        return [
            Phrase(
                "advice_turing",
                "{names}: Triton dropped this generation after 3.2 (the partner of PyTorch 2.6), so with PyTorch "
                "{torch} the portable backend `torch` is used.",
                names=Joined((device.name for device in turing_or_older), LIST),
                torch=torch_version,
            )
        ]
    if machine.hip and machine.system != "Windows":
        if machine.triton is None or machine.triton_error:
            return [
                Phrase(
                    "advice_rocm",
                    "Install PyTorch again from its ROCm index (see https://pytorch.org/get-started/locally): "
                    "its wheels require their own Triton, which is missing here.",
                )
            ]
        return []
    command = install_command(machine)
    if command is None:
        return [
            Phrase(
                "advice_pair_unknown",
                "Which Triton goes with PyTorch {torch} is not known here; its release notes say. "
                "Until Triton works, a backend that does without it is used.",
                torch=machine.torch,
            )
        ]
    if machine.triton is None:
        return [
            Phrase(
                "advice_install",
                "Install Triton {wanted}, the version for PyTorch {torch}: {command}",
                torch=torch_version,
                wanted=wanted,
                command=command,
            )
        ]
    if minor(machine.triton) != wanted:
        return [
            Phrase(
                "advice_other_pair",
                "Triton {found} does not belong to PyTorch {torch}, which goes with Triton {wanted}: {command}",
                found=machine.triton,
                torch=torch_version,
                wanted=wanted,
                command=command,
            )
        ]
    if machine.triton_error:
        todo: list[Text] = [
            Phrase(
                "advice_broken",
                "Triton is installed but does not import ({error}). Install it again: {command}",
                error=machine.triton_error,
                command=command,
            )
        ]
        if machine.system == "Windows":
            todo.append(
                Phrase(
                    "advice_redistributable",
                    "On Windows Triton needs the Visual C++ Redistributable: "
                    "https://aka.ms/vs/17/release/vc_redist.x64.exe",
                )
            )
        return todo
    return []


def _has_toolchain(machine: Machine) -> bool:
    # triton-windows brings a C compiler of its own.
    return machine.python_headers and (machine.system == "Windows" or machine.compiler is not None)


def _toolchain_advice(machine: Machine) -> list[Text]:
    todo: list[Text] = []
    if machine.system != "Windows" and machine.compiler is None:
        todo.append(
            Phrase(
                "advice_compiler",
                "Triton needs a C compiler at run time: install gcc (Debian and Ubuntu: apt install gcc).",
            )
        )
    if not machine.python_headers:
        version = minor(machine.python)
        todo.append(
            Phrase(
                "advice_headers_windows",
                "Triton needs the folders `include` and `libs` of Python {version} in {folder} "
                "(the portable ComfyUI lacks them): copy them from a usual installation of the same Python version, or "
                "see https://github.com/triton-lang/triton-windows#8-special-notes-for-comfyui-with-embeded-python",
                version=version,
                folder=str(Path(machine.python_path).parent),
            )
            if machine.system == "Windows"
            else Phrase(
                "advice_headers",
                "Triton needs Python's headers: install them (Debian and Ubuntu: apt install python{version}-dev).",
                version=version,
            )
        )
    return todo
