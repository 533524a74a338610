"""The kernels in every configuration that is shipped, described for the compiler."""

from __future__ import annotations

from collections.abc import Iterator

from draftattention.draftattn_core.backends.triton.launch import POWER_ITERATIONS
from draftattention.kernels.attend_pointer import attend_kernel
from draftattention.kernels.configs import ATTEND, AttendConfig, PrepareConfig, attend_config, prepare_config
from draftattention.kernels.prepare import means_kernel, prepare_keys_kernel
from draftattention.kernels.select import FORMS, HELD, ROW_BLOCK, ROW_WARPS
from draftattention.kernels.select_heads import head_threshold_kernel, histogram_kernel, tie_kernel
from draftattention.kernels.select_lists import emit_kernel, list_kernel
from draftattention.kernels.select_rows import row_kernel
from tools.aot.compile import Case, Planned

# What a head may do with skipped blocks, and how many singular pairs that takes.
TAILS = {"none": 0, "mean": 0, "linear0": 0, "linear1": 1, "linear2": 2}


def attend_case(
    config: AttendConfig,
    dim: int,
    *,
    dtype: str = "bf16",
    tail: str = "linear1",
    q_block: int = 128,
    k_block: int = 64,
    in_order: bool = True,
    bias: bool = True,
    lse: bool = False,
    codes: bool = False,
    half_sums: bool = False,
    fp8: bool = False,
    claims: frozenset[str] = frozenset(),
) -> Case:
    data = f"*{dtype}"
    types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr", "k_mean_ptr", "v_mean_ptr"), data)
    types |= dict.fromkeys(("cov_ptr", "u_ptr", "w_ptr"), data)
    types |= {"lse_ptr": "*fp32", "bias_ptr": "*fp32", "log_weight_ptr": "*fp32", "scale": "fp32"}
    types |= {"perm_ptr": "*i64", "list_ptr": "*i32", "count_ptr": "*i32"}
    # What a variant has no use for is given Q's address, as at a launch.
    types |= {"k_scale_ptr": "*fp32" if codes else data, "v_exponent_ptr": "*fp32" if half_sums else data}
    types |= ({"k_ptr": "*i8"} if codes else {}) | ({"v_ptr": "*fp8e4nv" if fp8 else "*fp16"} if half_sums else {})
    strides = [f"{x}_{axis}" for x in "qkvo" for axis in "bhn"]
    types |= dict.fromkeys(strides, "i32")
    lengths = ("heads", "tokens", "video_tokens", "q_video", "q_total", "k_video", "k_total", "bias_stride")
    types |= dict.fromkeys(lengths, "i32")
    config = config.within(q_block, k_block)
    constants = {f"{x}_d": 1 for x in "qkvo"} | {
        "DIM": dim,
        "Q_BLOCK": q_block,
        "K_BLOCK": k_block,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_G": config.block_g,
        "IN_ORDER": in_order,
        "TAIL": tail != "none",
        "COV": tail.startswith("linear"),
        "RANKS": TAILS[tail],
        "BIAS": bias,
        "LSE": lse,
        "EIGHT": codes,
        "HALF_SUMS": half_sums,
        "STAGES": config.stages,
        "TAIL_STAGES": config.tail_stages,
    }
    words = [f"attend d{dim}", dtype, f"blocks {q_block}/{k_block}", f"tail {tail}"]
    words += [*(["int8"] if codes else []), *(["half sums"] if half_sums else []), *(["fp8"] if fp8 else [])]
    words += [*([] if in_order else ["gathered"]), *([] if bias else ["no bias"]), *(["lse"] if lse else [])]
    words += [f"{config.block_m}x{config.block_n} g{config.block_g} w{config.warps} s{config.stages}"]
    return Case(
        ", ".join(words),
        attend_kernel,
        types,
        constants,
        config.warps,
        config.stages,
        frozenset(strides),
        # Without other products in 16 bits, those of FP8 are claimed instead.
        matrix=not fp8 or tail != "none",
        claims=claims,
    )


def prepare_case(
    config: PrepareConfig,
    dim: int,
    k_block: int,
    *,
    dtype: str = "bf16",
    tail: str = "linear1",
    copy: bool = True,
    codes: bool = False,
    halves: bool = False,
    fp8: bool = False,
) -> Case:
    strides = [f"{x}_{axis}" for x in "kv" for axis in "bhn"]
    types = dict.fromkeys(strides, "i32")
    types |= {f"{x}_ptr": f"*{dtype}" for x in ("k", "v", "k_pooled", "v_pooled", "u", "w", "k_copy", "v_copy")}
    types |= {"perm_ptr": "*i64", "ranks_ptr": "*i32", "k_mean_ptr": "*fp32", "spread_ptr": "*fp32", "cov_ptr": "*fp32"}
    types |= dict.fromkeys(("shift_ptr", "k_scale_ptr"), "*fp32" if codes else f"*{dtype}")
    types |= {"v_exponent_ptr": "*fp32" if halves else f"*{dtype}"}
    types |= ({"k_copy_ptr": "*i8"} if codes else {}) | (
        {"v_copy_ptr": "*fp8e4nv" if fp8 else "*fp16"} if halves else {}
    )
    types |= dict.fromkeys(("heads", "tokens", "video_tokens", "k_video", "k_total", "per_program"), "i32")
    linear = tail.startswith("linear")
    constants = {
        "k_d": 1,
        "v_d": 1,
        "DIM": dim,
        "K_BLOCK": k_block,
        "TAIL": tail != "none",
        "COV": linear,
        "RANKS": TAILS[tail],
        "COPY": copy,
        "EIGHT": codes,
        "HALVES": halves,
        "ITERATIONS": POWER_ITERATIONS[TAILS[tail]],
        "PREFETCH": linear and not codes and config.prefetches(k_block * dim),
    }
    words = [f"prepare keys d{dim}", dtype, f"blocks {k_block}", f"tail {tail}", *([] if copy else ["no copies"])]
    words += [*(["int8"] if codes else []), *(["halves"] if halves else []), *(["fp8"] if fp8 else [])]
    name = ", ".join([*words, f"w{config.warps}"])
    return Case(name, prepare_keys_kernel, types, constants, config.warps, 3, frozenset(strides), matrix=linear)


def means_case(config: PrepareConfig, dim: int, q_block: int, *, dtype: str = "bf16") -> Case:
    types = {"x_ptr": f"*{dtype}", "perm_ptr": "*i64", "mean_ptr": "*fp32"}
    types |= dict.fromkeys(("x_b", "x_h", "x_n", "heads", "video_tokens", "q_video"), "i32")
    constants = {"x_d": 1, "DIM": dim, "BLOCK": q_block}
    return Case(
        f"prepare queries d{dim}, {dtype}, blocks {q_block}, w{config.mean_warps}",
        means_kernel,
        types,
        constants,
        config.mean_warps,
        3,
        frozenset({"x_b", "x_h", "x_n"}),
    )


def select_cases() -> Iterator[Case]:
    integers: tuple[str, ...] = ("heads", "rows", "columns", "q_total", "k_total", "count_stride", "threshold_stride")
    integers += ("per_program", "turn")
    types = dict.fromkeys(integers, "i32")
    types |= {"score_ptr": "*fp32", "ranked_ptr": "*fp32", "top_p": "fp32", "forced_ptr": "*u8", "keep_ptr": "*u8"}
    types |= {
        f"{name}_ptr": "*i32" for name in ("count", "threshold", "tie", "need", "list", "list_count", "words", "bins")
    }
    for name, method in FORMS.items():
        yield Case(
            f"select rows, {name}", row_kernel, types, {"METHOD": method, "BLOCK": HELD * ROW_BLOCK}, ROW_WARPS, 3
        )
    yield Case("select head histogram", histogram_kernel, types, {"BLOCK": 4 * ROW_BLOCK}, 2 * ROW_WARPS, 3)
    yield Case("select head threshold", head_threshold_kernel, types, {}, ROW_WARPS, 3)
    yield Case("select ties", tie_kernel, types, {"BLOCK": ROW_BLOCK}, ROW_WARPS, 3)
    emits = {"row": (True, False, False), "head, top_p": (False, False, False)}
    emits |= {"draft": (False, True, False), "draft without a tail": (False, True, True)}
    for name, flags in emits.items():
        constants = {**dict(zip(("FORCE", "ALL_TIES", "RESCUE"), flags)), "BLOCK": ROW_BLOCK}
        yield Case(f"select emit, {name}", emit_kernel, types, constants, ROW_WARPS, 3)
    yield Case("lists of a map", list_kernel, types, {"BLOCK": ROW_BLOCK}, ROW_WARPS, 3)


def shipped_attend(target: str) -> Iterator[Case]:
    """What models' runs compile: each head size, type, block size and tail, and what some calls add or leave out."""
    variants: list[dict[str, object]] = [{"tail": tail, "k_block": block} for block in (64, 128) for tail in TAILS]
    variants += [{"tail": tail, "bias": False} for tail in TAILS]
    variants += [{"q_block": 64, "tail": tail} for tail in ("none", "linear1", "linear2")]
    variants += [{"q_block": 64, "k_block": 128}, {"in_order": False}, {"in_order": False, "k_block": 128}]
    variants += [{"dtype": "fp16"}, {"lse": True}]
    for dim in (64, 128):
        for options in variants:
            config = attend_config(target, dim, TAILS[str(options.get("tail", "linear1"))])
            yield attend_case(config, dim, **options)  # type: ignore[arg-type]


def shipped_prepare(target: str) -> Iterator[Case]:
    config = prepare_config(target)
    for dim in (64, 128):
        for block in (64, 128):
            yield from (prepare_case(config, dim, block, tail=tail) for tail in TAILS)
            yield means_case(config, dim, block)
        yield prepare_case(config, dim, 128, dtype="fp16")
        yield prepare_case(config, dim, 64, copy=False)
        yield means_case(config, dim, 128, dtype="fp16")


def all_cases() -> list[Planned]:
    """Every kernel in every shipped configuration, for every target."""
    plan = []
    for target in dict.fromkeys(name for name, _ in ATTEND):
        plan += [Planned(target, case) for case in (*shipped_attend(target), *shipped_prepare(target), *select_cases())]
    return plan


def representative_cases() -> list[Planned]:
    """The default call (bfloat16, rank 1, keys in blocks of 64) for every target, and each other kernel once."""
    targets = dict.fromkeys(name for name, _ in ATTEND)
    plan = [Planned(target, attend_case(attend_config(target, 128, 1), 128)) for target in targets]
    plan += [Planned(target, prepare_case(prepare_config(target), 128, 64)) for target in ("sm_90", "gfx942")]
    plan += [Planned("sm_86", means_case(prepare_config("sm_86"), 128, 128))]
    plan += [Planned("sm_86", case) for case in select_cases()]
    return plan
