"""Compile one kernel for a GPU that is not there, and read from the binary what it will need on it."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import re
import subprocess
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from draftattention.kernels.runtime import FUSED

TARGETS = {
    **{f"sm_{n}": GPUTarget("cuda", n, 32) for n in (80, 86, 89, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
    "gfx1201": GPUTarget("hip", "gfx1201", 32),
}

# Classes that are counted, and the matrix instructions each target has to use.
INSTRUCTIONS = {
    "cuda": (
        "HMMA",
        "HGMMA",
        "UTCHMMA",
        "IMMA",
        "IGMMA",
        "HMMA.16816.F16",
        "QMMA.16832.F16",
        "LDGSTS",
        "UTMALDG",
        "USETMAXREG",
    ),
    "hip": ("v_mfma", "v_wmma", "v_mfma_i32", "v_wmma_i32"),
}
MATRIX = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_120"), "HMMA"),
    "sm_90": "HGMMA",
    "sm_100": "UTCHMMA",
    "gfx942": "v_mfma",
    "gfx1100": "v_wmma",
    "gfx1201": "v_wmma",
}
# Those of INT8 products. Blackwell's data-centre chips have none for tcgen05 in Triton: the older ones serve.
INT8_MATRIX = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_100", "sm_120"), "IMMA"),
    "sm_90": "IGMMA",
    "gfx942": "v_mfma_i32",
    "gfx1100": "v_wmma_i32",
    "gfx1201": "v_wmma_i32",
}
HALF_SUMS, FP8_SUMS = "HMMA.16816.F16", "QMMA.16832.F16"


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration. A kernel in another language than `triton.jit` overrides `source`.

    Attributes:
        name: kernel and configuration in words; with the target it is what results and known stack go by.
        kernel: a `triton.jit` function.
        types: argument name -> Triton type, for all that are not constants.
        constants: argument name -> value.
        warps, stages: launch options.
        aligned: arguments that are multiples of 16 (pointers always are).
        matrix: whether the target's matrix instruction has to be in the binary.
        claims: further instruction classes that have to be there (UTMALDG, USETMAXREG for warp specialisation).
        options: further launch options.
    """

    name: str
    kernel: JITFunction
    types: Mapping[str, str]
    constants: Mapping[str, object]
    warps: int
    stages: int
    aligned: frozenset[str] = frozenset()
    matrix: bool = False
    claims: frozenset[str] = frozenset()
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def signature(self) -> dict[str, str]:
        """Argument name -> Triton type, in the kernel's order."""
        return {n: "constexpr" if n in self.constants else self.types[n] for n in self.kernel.arg_names}

    @property
    def attributes(self) -> dict[tuple[int, ...], list[list[object]]]:
        """What the compiler may assume of arguments, as a launch with such tensors would find out."""
        return {
            (i,): [["tt.divisibility", 16]]
            for i, (name, kind) in enumerate(self.signature.items())
            if kind.startswith("*") or name in self.aligned
        }

    def source(self) -> ASTSource:
        """What Triton compiles."""
        return ASTSource(self.kernel, self.signature, dict(self.constants), self.attributes)


class Planned(NamedTuple):
    """A case and the target it is compiled for."""

    target: str
    case: Case


@dataclass(frozen=True)
class Compiled:
    """What a binary says about itself.

    Attributes:
        target, name: the target and the case's name.
        registers: per thread (VGPRs on AMD).
        stack: bytes per thread in local memory: spilled registers and arrays that found no place in them.
        shared: bytes per program.
        warps: per program, those of a specialised kernel's producers included.
        instructions: how often each class of INSTRUCTIONS occurs.
        wants: classes that have to occur.
        error: why there is no binary, or None.
        loop_stack: instructions inside loops that touch the stack; what only rests there over a loop costs little.
    """

    target: str
    name: str
    registers: int = 0
    stack: int = 0
    shared: int = 0
    warps: int = 0
    instructions: Mapping[str, int] = field(default_factory=dict)
    wants: tuple[str, ...] = ()
    error: str | None = None
    loop_stack: int = 0


def compile_case(planned: Planned) -> Compiled:
    """Compile; an error of the compiler is a result."""
    target, case = planned
    wants = tuple(sorted(case.claims | ({MATRIX[target]} if case.matrix else set())))
    try:
        binary = _compiled(planned)
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        return Compiled(target, case.name, wants=wants, error=f"{type(error).__name__}: {lines[-1]}")
    nvidia = TARGETS[target].backend == "cuda"
    registers, stack, in_loops, counts = _read_cuda(binary.asm["cubin"]) if nvidia else _read_hip(binary.asm["amdgcn"])
    shared, warps = binary.metadata.shared, binary.metadata.num_warps
    return Compiled(target, case.name, registers, stack, shared, warps, counts, wants, loop_stack=in_loops)


def disassembly(planned: Planned) -> str:
    """The machine code of a case for an NVIDIA GPU, as text. Raises what the compiler raises."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(_compiled(planned).asm["cubin"])
        return _tool("nvdisasm", "-c", str(path))


def _compiled(planned: Planned) -> CompiledKernel:
    target, case = planned
    options = {"num_warps": case.warps, "num_stages": case.stages, **FUSED, **case.options}
    return triton.compile(case.source(), target=TARGETS[target], options=options)


def _read_cuda(cubin: bytes) -> tuple[int, int, int, dict[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", str(path))
        code = _tool("nvdisasm", "-c", str(path))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {usage}")
    counts = {name: len(re.findall(rf"\b{re.escape(name)}\b", code)) for name in INSTRUCTIONS["cuda"]}
    return int(found[1]), int(found[2]), count_in_loops(code, r"\b(STL|LDL)\b"), counts


def _read_hip(assembly: str) -> tuple[int, int, int, dict[str, int]]:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"the assembly does not tell its {name}")
        return int(found[1])

    counts = {name: len(re.findall(rf"\b{name}", assembly)) for name in INSTRUCTIONS["hip"]}
    return (
        number("vgpr_count"),
        number("private_segment_fixed_size"),
        count_in_loops(assembly, r"\bscratch_(load|store)"),
        counts,
    )


def count_in_loops(code: str, pattern: str) -> int:
    """Lines of a disassembly that match and lie between a label and a later branch back to it."""
    lines = code.splitlines()
    labels = {found[1]: i for i, line in enumerate(lines) if (found := re.match(r"\s*(\.L\w+):", line))}
    inside: set[int] = set()
    for i, line in enumerate(lines):
        branch = re.search(r"\b(?:BRA\S*|s_c?branch\w*)\s.*?(\.L\w+)", line)
        if branch and labels.get(branch[1], i) < i:
            inside.update(range(labels[branch[1]], i))
    return sum(re.search(pattern, lines[i]) is not None for i in inside)


def _tool(name: str, *arguments: str) -> str:
    # Triton's wheel brings them; where it keeps their paths changes from version to version.
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout


def fingerprint(planned: Planned) -> str:
    """Changes when the kernel's code or the case does. Not with comments, docstrings, or where the code stands."""
    target, case = planned
    words: list[object] = [
        target,
        code_of(case.kernel),
        case.signature,
        sorted(case.constants.items()),
        case.attributes,
    ]
    words += [case.warps, case.stages, sorted({**FUSED, **case.options}.items())]
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


@functools.cache
def code_of(kernel: JITFunction) -> str:
    """The source of a kernel and of all of the pack that it calls, and the constants it reads, without comments."""
    found: dict[str, str] = {}
    _gather(kernel, found)
    return "\n".join(found.values())


def _gather(kernel: JITFunction, found: dict[str, str]) -> None:
    function = kernel.fn
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
    if name in found:
        return
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    found[name] = outline(tree)
    for used in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}):
        value = function.__globals__.get(used)
        if isinstance(value, JITFunction):
            _gather(value, found)
        elif isinstance(value, (int, float, tl.constexpr)):
            found[used] = f"{used} = {value!r}"


def outline(node: object) -> str:
    """A syntax tree as text: the code without its comments and layout."""
    # Not ast.dump or ast.unparse: what they write differs between versions of Python.
    if isinstance(node, ast.AST):
        fields = [f"{name}={outline(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"[{', '.join(map(outline, node))}]" if isinstance(node, list) else repr(node)
