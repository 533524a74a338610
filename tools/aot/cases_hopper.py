"""The warp-specialised attend in every configuration that is shipped: sm_90 only.

What it claims is what the compiler drops in silence after an innocent edit: registers moved from the warps that fetch
to those that multiply (USETMAXREG), and TMA (UTMALDG).
"""

from __future__ import annotations

from collections.abc import Iterator

from draftattention.kernels.attend_hopper import WARPS, lacking, listed_kernel, tail_kernel
from draftattention.kernels.configs import hopper_config
from tools.aot.cases import TAILS
from tools.aot.compile import Case, Planned

TARGET = "sm_90"
CLAIMS = frozenset({"UTMALDG", "USETMAXREG"})
_STRIDES = ("o_b", "o_h", "o_n")
_LENGTHS = ("heads", "tokens", "video_tokens", "q_video", "q_total", "k_video", "k_total", "slot_stride")
_TYPES = {
    **dict.fromkeys((*_STRIDES, *_LENGTHS), "i32"),
    **dict.fromkeys(("lse_ptr", "log_weight_ptr", "slot_ptr"), "*fp32"),
    **dict.fromkeys(("list_ptr", "count_ptr", "words_ptr"), "*i32"),
    "perm_ptr": "*i64",
    "scale": "fp32",
}


def tail_case(dim: int, *, dtype: str = "bf16", tail: str = "linear1") -> Case:
    config = hopper_config(dim, 64, TAILS[tail])
    names = ("q", "out", "k_mean", "v_mean", "cov", "u", "w")
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
    types = {**_TYPES, **{f"{x}_ptr": f"*{dtype}" for x in names}}
    return Case(
        name, tail_kernel, types, constants, WARPS, config.tail_stages, frozenset(_STRIDES), matrix=True, claims=CLAIMS
    )


def listed_case(dim: int, *, dtype: str = "bf16", k_block: int = 64, tail: bool = True, lse: bool = False) -> Case:
    config = hopper_config(dim, k_block, 0)
    constants = {
        "o_d": 1,
        "DIM": dim,
        "Q_BLOCK": 128,
        "K_BLOCK": k_block,
        "TAIL": tail,
        "LSE": lse,
        "STAGES": config.stages,
    }
    words = [f"hopper listed d{dim}", dtype, f"blocks 128/{k_block}", *([] if tail else ["no tail"])]
    words += [*(["lse"] if lse else []), f"128x{k_block} s{config.stages}"]
    types = {**_TYPES, **{f"{x}_ptr": f"*{dtype}" for x in ("q", "k", "v", "out")}}
    return Case(
        ", ".join(words),
        listed_kernel,
        types,
        constants,
        WARPS,
        config.stages,
        frozenset(_STRIDES),
        matrix=True,
        claims=CLAIMS,
    )


def _cases() -> Iterator[Case]:
    for dim in (64, 128):
        yield from (tail_case(dim, tail=tail) for tail in TAILS if tail != "none")
        yield tail_case(dim, dtype="fp16")
        for k_block in (64, 128):
            yield listed_case(dim, k_block=k_block)
            yield listed_case(dim, k_block=k_block, dtype="fp16")
            yield listed_case(dim, k_block=k_block, tail=False)
            yield listed_case(dim, k_block=k_block, lse=True)


def all_cases() -> list[Planned]:
    """Both kernels at each head size, type, tail and key block, and what some calls add or leave out."""
    return [] if lacking() else [Planned(TARGET, case) for case in _cases()]


def representative_cases() -> list[Planned]:
    """The default call, both key blocks."""
    if lacking():
        return []
    return [Planned(TARGET, case) for case in (tail_case(128), listed_case(128), listed_case(128, k_block=128))]
