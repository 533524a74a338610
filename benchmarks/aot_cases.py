"""Every kernel in every configuration that is shipped, described for the compiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kernels.attend_pointer import attend_kernel
from kernels.configs import ATTEND, AttendConfig, PrepareConfig, attend_config
from kernels.prepare import means_kernel, prepare_keys_kernel
from kernels.select import (
    METHODS,
    ROW_BLOCK,
    ROW_WARPS,
    emit_kernel,
    head_threshold_kernel,
    list_kernel,
    row_kernel,
    tie_kernel,
)

from .aot_compile import Case


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
    types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr", "k_mean_ptr", "v_mean_ptr"), data)
    types |= dict.fromkeys(("cov_ptr", "u_ptr", "w_ptr"), data)
    types |= {"lse_ptr": "*fp32", "bias_ptr": "*fp32", "log_count_ptr": "*fp32", "scale": "fp32"}
    types |= {"perm_ptr": "*i64", "list_ptr": "*i32", "count_ptr": "*i32", "keep_ptr": "*u8"}
    strides = [f"{x}_{axis}" for x in "qkvo" for axis in "bhn"]
    types |= dict.fromkeys(strides, "i32")
    lengths = ("heads", "tokens", "video_tokens", "q_video", "q_total", "k_video", "k_total", "bias_stride")
    types |= dict.fromkeys(lengths, "i32")
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


def prepare_case(
    dim: int,
    k_block: int,
    *,
    dtype: str = "bf16",
    ranks: int = 1,
    copy: bool = True,
    config: PrepareConfig | None = None,
    spills_known: frozenset[str] = frozenset(),
) -> Case:
    config = PrepareConfig() if config is None else config
    strides = [f"{x}_{axis}" for x in "kv" for axis in "bhn"]
    types = dict.fromkeys(strides, "i32")
    types |= {f"{x}_ptr": f"*{dtype}" for x in ("k", "v", "k_pooled", "v_pooled", "u", "w", "k_copy", "v_copy")}
    types |= {"perm_ptr": "*i64", "ranks_ptr": "*i32", "k_mean_ptr": "*fp32", "spread_ptr": "*fp32", "cov_ptr": "*fp32"}
    types |= dict.fromkeys(("heads", "tokens", "video_tokens", "k_video", "k_total", "per_program"), "i32")
    constants = {
        "k_d": 1,
        "v_d": 1,
        "DIM": dim,
        "K_BLOCK": k_block,
        "TAIL": True,
        "COV": True,
        "RANKS": ranks,
        "COPY": copy,
        "ITERATIONS": 6,
    }
    name = f"prepare keys d{dim}, {dtype}, blocks {k_block}, w{config.warps}, rank {ranks}"
    warps = config.warps
    return Case(name, prepare_keys_kernel, types, constants, warps, 3, frozenset(strides), spills_known, True)


def means_case(dim: int, q_block: int, *, dtype: str = "bf16") -> Case:
    types = {"x_ptr": f"*{dtype}", "perm_ptr": "*i64", "mean_ptr": "*fp32"}
    types |= dict.fromkeys(("x_b", "x_h", "x_n", "heads", "video_tokens", "q_video"), "i32")
    constants = {"x_d": 1, "DIM": dim, "BLOCK": q_block}
    warps = PrepareConfig().mean_warps
    return Case(
        f"prepare queries d{dim}, {dtype}, blocks {q_block}, w{warps}",
        means_kernel,
        types,
        constants,
        warps,
        3,
        frozenset({"x_b", "x_h", "x_n"}),
    )


def select_cases() -> Iterator[Case]:
    integers = ("heads", "rows", "columns", "q_total", "k_total", "count_stride", "threshold_stride")
    types = dict.fromkeys(integers, "i32")
    types |= {"score_ptr": "*fp32", "ranked_ptr": "*fp32", "top_p": "fp32", "forced_ptr": "*u8", "keep_ptr": "*u8"}
    types |= {f"{name}_ptr": "*i32" for name in ("count", "threshold", "tie", "need", "list", "list_count")}
    for name, method in METHODS.items():
        yield Case(f"select rows, {name}", row_kernel, types, {"METHOD": method, "BLOCK": ROW_BLOCK}, ROW_WARPS, 3)
    yield Case("select head threshold", head_threshold_kernel, types, {"BLOCK": 4 * ROW_BLOCK}, 2 * ROW_WARPS, 3)
    yield Case("select ties", tie_kernel, types, {"BLOCK": ROW_BLOCK}, ROW_WARPS, 3)
    for name, flags in (("row", (True, False, False)), ("head", (False, False, False)), ("draft", (False, True, True))):
        constants = {**dict(zip(("FORCE", "ALL_TIES", "RESCUE"), flags)), "BLOCK": ROW_BLOCK}
        yield Case(f"select emit, {name}", emit_kernel, types, constants, ROW_WARPS, 3)
    yield Case("lists of a map", list_kernel, types, {"BLOCK": ROW_BLOCK}, ROW_WARPS, 3)


class Planned(NamedTuple):
    """A case and the target it is compiled for."""

    target: str
    case: Case


# Stack that no tile size tried avoids. RDNA has no room for an accumulator of 128 columns beside the tail's products;
# on sm_120 (ptxas-blackwell) and with two ranks on sm_89 it is scratch outside the loop over listed blocks.
_TAIL_SPILLS = {
    128: frozenset({"gfx1100", "gfx1201", "sm_120"}),
    64: frozenset({"gfx1100"}),
}


# A whole 128 x 128 tile of K, one of V and the sum of their products are a few registers too many.
_WIDE_SPILLS = frozenset({"sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx1100", "gfx1201"})


def shipped_attend(target: str) -> Iterator[Case]:
    """What a model's run compiles: each head size and type, the tails a policy may ask for, both key blocks."""
    for dim in (64, 128):
        variants: list[dict[str, object]] = [{}, {"dtype": "fp16"}, {"k_block": 128}, {"in_order": False}]
        variants += [{"tail": "none"}, {"ranks": 0}, {"ranks": 2}]
        for options in variants:
            ranks = int(options.get("ranks", 1)) if options.get("tail", "linear") == "linear" else 0  # type: ignore[call-overload]
            config = attend_config(target, dim, ranks)
            yield attend_case(config, dim, spills_known=_TAIL_SPILLS[dim], **options)  # type: ignore[arg-type]


def shipped_prepare() -> Iterator[Case]:
    for dim in (64, 128):
        for block in (64, 128):
            for ranks in (1, 2):
                known = _WIDE_SPILLS if dim == block == 128 else frozenset()
                yield prepare_case(dim, block, ranks=ranks, spills_known=known)
            yield means_case(dim, block)


def all_cases() -> list[Planned]:
    """Every kernel in every shipped configuration, for every target."""
    plan = []
    for target in dict.fromkeys(name for name, _ in ATTEND):
        plan += [Planned(target, case) for case in (*shipped_attend(target), *shipped_prepare(), *select_cases())]
    return plan


def representative_cases() -> list[Planned]:
    """The default call (bfloat16, rank 1, keys in blocks of 64) for every target, and each other kernel once."""
    plan = []
    for target in dict.fromkeys(name for name, _ in ATTEND):
        config = attend_config(target, 128, 1)
        plan.append(Planned(target, attend_case(config, 128, spills_known=_TAIL_SPILLS[128])))
    plan += [Planned("sm_90", prepare_case(128, 64)), Planned("gfx942", prepare_case(128, 64))]
    plan += [Planned("sm_86", case) for case in select_cases()]
    return plan
