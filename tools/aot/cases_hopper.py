"""The warp-specialised attend in every configuration that is shipped: sm_90 only.

What it claims is what the compiler drops in silence after an innocent edit: registers moved from the warps that fetch
to those that multiply (USETMAXREG), and TMA (UTMALDG).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from triton.runtime.jit import JITFunction

from draftattention.kernels.attend_hopper import EDGE_STAGES, PAIRED, WARPS, lacking
from draftattention.kernels.configs import hopper_config
from draftattention.kernels.hopper_listed import edge_kernel, whole_kernel
from draftattention.kernels.hopper_tail import tail_kernel
from tools.aot.cases import TAILS
from tools.aot.compile import Case, Planned

TARGET = "sm_90"
CLAIMS = frozenset({"UTMALDG", "USETMAXREG"})
_STRIDES = ("o_b", "o_h", "o_n")
_LENGTHS: tuple[str, ...] = ("heads", "tokens", "video_tokens", "q_video", "q_total", "k_video", "k_total")
_LENGTHS += ("slot_stride", "seeded")
_DATA = ("q", "k", "v", "out", "k_mean", "v_mean", "cov", "u", "w")
_TYPES = {
    **dict.fromkeys((*_STRIDES, *_LENGTHS), "i32"),
    **dict.fromkeys(("lse_ptr", "log_weight_ptr", "slot_ptr"), "*fp32"),
    **dict.fromkeys(("list_ptr", "count_ptr", "words_ptr"), "*i32"),
    "perm_ptr": "*i64",
    "scale": "fp32",
}


def tail_case(dim: int, *, dtype: str = "bf16", tail: str = "linear1") -> Case:
    config = hopper_config(dim, 64, TAILS[tail])
    constants = {
        "o_d": 1,
        "DIM": dim,
        "Q_BLOCK": 128,
        "BLOCK_G": config.block_g,
        "COV": tail.startswith("linear"),
        "RANKS": TAILS[tail],
        "STAGES": config.tail_stages,
    }
    name = f"hopper tail d{dim}, {dtype}, tail {tail}, 128x{config.block_g} s{config.tail_stages}"
    return _case(name, tail_kernel, dtype, constants, config.tail_stages)


def edge_case(dim: int, *, dtype: str = "bf16", k_block: int = 64) -> Case:
    constants = {"o_d": 1, "DIM": dim, "Q_BLOCK": 128, "K_BLOCK": k_block, "STAGES": EDGE_STAGES}
    name = f"hopper edges d{dim}, {dtype}, blocks 128/{k_block}, 128x{k_block} s{EDGE_STAGES}"
    return _case(name, edge_kernel, dtype, constants, EDGE_STAGES)


def whole_case(dim: int, *, dtype: str = "bf16", k_block: int = 64, lse: bool = False) -> Case:
    stages = hopper_config(dim, k_block, 0).stages
    constants = {"o_d": 1, "DIM": dim, "Q_BLOCK": 128, "K_BLOCK": k_block, "PAIRS": k_block <= PAIRED}
    words = [f"hopper whole d{dim}", dtype, f"blocks 128/{k_block}", *(["lse"] if lse else []), f"128x128 s{stages}"]
    return _case(", ".join(words), whole_kernel, dtype, {**constants, "LSE": lse, "STAGES": stages}, stages)


def _case(name: str, kernel: JITFunction, dtype: str, constants: Mapping[str, object], stages: int) -> Case:
    types = {**_TYPES, **{f"{x}_ptr": f"*{dtype}" for x in _DATA}}
    return Case(name, kernel, types, constants, WARPS, stages, frozenset(_STRIDES), matrix=True, claims=CLAIMS)


def _cases() -> Iterator[Case]:
    for dim in (64, 128):
        yield from (tail_case(dim, tail=tail) for tail in TAILS if tail != "none")
        yield tail_case(dim, dtype="fp16")
        for k_block in (64, 128):
            for dtype in ("bf16", "fp16"):
                yield edge_case(dim, k_block=k_block, dtype=dtype)
                yield whole_case(dim, k_block=k_block, dtype=dtype)
            yield whole_case(dim, k_block=k_block, lse=True)


def all_cases() -> list[Planned]:
    """All kernels at each head size, type, tail and key block, and what some calls add or leave out."""
    return [] if lacking() else [Planned(TARGET, case) for case in _cases()]


def representative_cases() -> list[Planned]:
    """The default call, both key blocks."""
    if lacking():
        return []
    cases = (tail_case(128), edge_case(128), whole_case(128), whole_case(128, k_block=128))
    return [Planned(TARGET, case) for case in cases]
