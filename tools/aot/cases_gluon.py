"""The Gluon form of attend in every configuration that is shipped: sm_90 only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from triton.compiler import ASTSource

from draftattention.kernels.attend_hopper import lacking
from tools.aot.cases import TAILS
from tools.aot.cases_hopper import CLAIMS, TARGET
from tools.aot.compile import Case, Planned


@dataclass(frozen=True)
class GluonCase(Case):
    """A case in Gluon, where a descriptor's type has its layout in it."""

    def source(self) -> ASTSource:
        from triton.experimental.gluon._runtime import GluonASTSource

        return GluonASTSource(self.kernel, self.signature, dict(self.constants), self.attributes)


def gluon_case(
    dim: int, *, dtype: str = "bf16", k_block: int = 64, tail: str = "linear1", bias: bool = True, lse: bool = False
) -> Case:
    # Here, because older versions of Triton have no Gluon.
    from triton.experimental.gluon import language as gl

    from draftattention.kernels.attend_gluon import REGISTERS, SLOTS, gluon_kernel

    constants = {
        "q_d": 1,
        "o_d": 1,
        "DIM": dim,
        "K_BLOCK": k_block,
        "TAIL": tail != "none",
        "COV": tail.startswith("linear"),
        "RANKS": TAILS[tail],
        "BIAS": bias,
        "LSE": lse,
        "SLOTS": SLOTS[dim],
    }
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
    strides = ("q_b", "q_h", "q_n", "o_b", "o_h", "o_n")
    types = dict.fromkeys(gluon_kernel.arg_names, "i32")
    types |= {name: f"tensordesc<{dtype}[1, 64, 64],{layout!r}>" for name in types if name.endswith("_desc")}
    types |= {"perm_ptr": "*i64", "scale": "fp32", **dict.fromkeys(("q_ptr", "out_ptr"), f"*{dtype}")}
    types |= dict.fromkeys(("list_ptr", "count_ptr", "words_ptr"), "*i32")
    types |= dict.fromkeys(("lse_ptr", "bias_ptr", "log_weight_ptr"), "*fp32")
    words = [f"gluon d{dim}", dtype, f"blocks 128/{k_block}", f"tail {tail}"]
    words += [*([] if bias else ["no bias"]), *(["lse"] if lse else []), f"s{SLOTS[dim]}"]
    return GluonCase(
        ", ".join(words),
        gluon_kernel,
        types,
        constants,
        4,
        3,
        frozenset(strides),
        matrix=True,
        claims=CLAIMS,
        options={"maxnreg": REGISTERS},
    )


def _cases() -> Iterator[Case]:
    for dim in (64, 128):
        for k_block in (64, 128):
            yield from (gluon_case(dim, k_block=k_block, tail=tail) for tail in TAILS)
        yield gluon_case(dim, dtype="fp16")
        yield gluon_case(dim, bias=False)
        yield gluon_case(dim, lse=True)


def all_cases() -> list[Planned]:
    """Each head size, tail and key block, and what some calls add or leave out."""
    return [] if lacking() else [Planned(TARGET, case) for case in _cases()]


def representative_cases() -> list[Planned]:
    """The default call."""
    return [] if lacking() else [Planned(TARGET, gluon_case(128))]
