"""Every kernel in every configuration that is shipped, described for the compiler."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.attend_pointer import attend_kernel
from kernels.configs import ATTEND, AttendConfig

from .aot_compile import Case

_NAME = {"bf16": "bfloat16", "fp16": "float16"}


def attend_case(
    config: AttendConfig,
    dim: int,
    *,
    dtype: str = "bf16",
    ranks: int = 1,
    tail: str = "linear",
    k_block: int = 64,
    in_order: bool = True,
    bias: bool = True,
    lse: bool = False,
    spills_known: frozenset[str] = frozenset(),
) -> Case:
    data = f"*{dtype}"
    types = {name: data for name in ("q_ptr", "k_ptr", "v_ptr", "out_ptr", "k_mean_ptr", "v_mean_ptr")}
    types |= {name: data for name in ("cov_ptr", "u_ptr", "w_ptr")}
    types |= {"lse_ptr": "*fp32", "bias_ptr": "*fp32", "log_count_ptr": "*fp32", "scale": "fp32"}
    types |= {"perm_ptr": "*i64", "list_ptr": "*i32", "count_ptr": "*i32", "keep_ptr": "*u8"}
    strides = [f"{x}_{axis}" for x in "qkvo" for axis in "bhn"]
    types |= {name: "i32" for name in strides}
    lengths = ("heads", "tokens", "video_tokens", "q_video", "q_total", "k_video", "k_total", "bias_stride")
    types |= {name: "i32" for name in lengths}
    constants = {f"{x}_d": 1 for x in "qkvo"} | {
        "DIM": dim,
        "Q_BLOCK": 128,
        "K_BLOCK": k_block,
        "BLOCK_M": config.block_m,
        "BLOCK_N": min(config.block_n, k_block),
        "BLOCK_G": config.block_g,
        "IN_ORDER": in_order,
        "TAIL": tail != "none",
        "COV": tail == "linear",
        "RANKS": ranks if tail == "linear" else 0,
        "BIAS": bias,
        "LSE": lse,
        "STAGES": config.stages,
        "TAIL_STAGES": config.tail_stages,
    }
    words = [f"d{dim}", dtype, f"{config.block_m}x{min(config.block_n, k_block)} of {k_block}", f"w{config.warps}"]
    words += [f"s{config.stages}", "in order" if in_order else "gathered"]
    words += [f"tail {tail}{ranks}" if tail == "linear" else f"tail {tail}", *(["lse"] if lse else [])]
    return Case(
        "attend " + ", ".join(words),
        attend_kernel,
        types,
        constants,
        config.warps,
        config.stages,
        frozenset(strides),
        spills_known,
        expects=True,
    )
