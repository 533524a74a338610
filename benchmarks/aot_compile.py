"""Compile one kernel for a GPU that is not there, and read from the binary what it will need on it."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.configs import SHARED_LIMIT

TARGETS = {
    **{f"sm_{n}": GPUTarget("cuda", n, 32) for n in (80, 86, 89, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
    "gfx1201": GPUTarget("hip", "gfx1201", 32),
}

INSTRUCTIONS = {
    "cuda": ("HMMA", "HGMMA", "UTCHMMA", "UTMALDG", "LDGSTS", "USETMAXREG"),
    "hip": ("v_mfma", "v_wmma"),
}


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration.

    Attributes:
        name: kernel and configuration in words.
        kernel: a `triton.jit` function.
        types: argument name -> Triton type, for all that are not constants.
        constants: argument name -> value.
        warps, stages: launch options.
        aligned: arguments that are multiples of 16 (pointers always are).
        spills_known: targets where spills are known and cannot be avoided.
        expects: instruction classes one of which must be there, per kind of target; empty to expect nothing.
    """

    name: str
    kernel: object
    types: Mapping[str, str]
    constants: Mapping[str, object]
    warps: int
    stages: int
    aligned: frozenset[str] = frozenset()
    spills_known: frozenset[str] = frozenset()
    expects: bool = False


@dataclass
class Compiled:
    """What a binary says about itself. `problems` is empty if it can be shipped."""

    case: Case
    target: str
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    warps: int = 0
    instructions: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)


def compile_case(case: Case, target: str) -> Compiled:
    """Compile for `target`; a compiler error is one of the result's problems."""
    result = Compiled(case, target)
    start = time.monotonic()
    try:
        binary = _compile(case, TARGETS[target])
    except Exception as error:
        result.problems.append(f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1]}")
        return result
    result.seconds = time.monotonic() - start
    result.shared = binary.metadata.shared
    result.warps = binary.metadata.num_warps
    if target.startswith("sm_"):
        _read_cuda(result, binary.asm["cubin"])
    else:
        _read_hip(result, binary.asm["amdgcn"])
    _judge(result)
    return result


def _compile(case: Case, target: GPUTarget):
    names = case.kernel.arg_names
    signature = {name: "constexpr" if name in case.constants else case.types[name] for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or name in case.aligned
    }
    source = ASTSource(case.kernel, signature, dict(case.constants), attributes)
    return triton.compile(source, target=target, options={"num_warps": case.warps, "num_stages": case.stages})


def _read_cuda(result: Compiled, cubin: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", str(path))
        code = _tool("nvdisasm", "-c", str(path))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {usage}")
    result.registers, result.spilled = int(found[1]), int(found[2])
    result.instructions = {name: len(re.findall(rf"\b{name}\b", code)) for name in INSTRUCTIONS["cuda"]}


def _read_hip(result: Compiled, assembly: str) -> None:
    def number(pattern: str) -> int:
        found = re.search(pattern, assembly)
        return int(found[1]) if found else 0

    result.registers = number(r"\.vgpr_count:\s*(\d+)")
    result.spilled = number(r"\.private_segment_fixed_size:\s*(\d+)")
    result.instructions = {name: len(re.findall(rf"\b{name}", assembly)) for name in INSTRUCTIONS["hip"]}


def _tool(name: str, *arguments: str) -> str:
    # Triton's wheel brings them; where it keeps their paths changes from version to version.
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout


def _judge(result: Compiled) -> None:
    limit = SHARED_LIMIT[result.target]
    if result.shared > limit:
        result.problems.append(f"{result.shared} B of shared memory, the limit is {limit}")
    if result.spilled:
        where = result.known if result.target in result.case.spills_known else result.problems
        where.append(f"{result.spilled} B of stack per thread")
    if result.case.expects and not any(
        count for name, count in result.instructions.items() if name not in ("LDGSTS", "UTMALDG", "USETMAXREG")
    ):
        result.problems.append("no matrix instruction")
