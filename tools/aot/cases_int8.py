"""The kernels with INT8 scores, in every configuration that is shipped, described for the compiler."""

from __future__ import annotations

from collections.abc import Iterator

from draftattention.kernels.configs import ATTEND, attend_config, fp8_sums, prepare_config, sums_in_half
from tools.aot.cases import TAILS, attend_case, prepare_case
from tools.aot.compile import FP8_SUMS, HALF_SUMS, INT8_MATRIX, Case, Planned

_REPRESENTATIVE = ("sm_80", "sm_89", "sm_90", "sm_120", "gfx1201")


def int8_attend(target: str, dim: int, *, fp8: bool = False, **options: object) -> Case:
    """`attend` as a target launches it: sums in float16 where those are faster, of values in FP8 if asked for."""
    half = sums_in_half(target)
    claims = frozenset({INT8_MATRIX[target]} | ({FP8_SUMS if fp8 else HALF_SUMS} if half else set()))
    config = attend_config(target, dim, TAILS[str(options.get("tail", "linear1"))], codes=True)
    return attend_case(config, dim, codes=True, half_sums=half, fp8=fp8, claims=claims, **options)  # type: ignore[arg-type]


def int8_prepare(target: str, dim: int, k_block: int, **options: object) -> Case:
    """The pass that makes the codes."""
    config, half = prepare_config(target), sums_in_half(target)
    return prepare_case(config, dim, k_block, codes=True, halves=half, **options)  # type: ignore[arg-type]


def shipped(target: str) -> Iterator[Case]:
    """What models' runs compile with bits 8, beside what they compile without."""
    variants: list[dict[str, object]] = [{"tail": tail} for tail in TAILS]
    variants += [{"k_block": 128}, {"q_block": 64}, {"bias": False}, {"dtype": "fp16"}]
    for dim in (64, 128):
        yield from (int8_attend(target, dim, **options) for options in variants)  # type: ignore[arg-type]
        for block in (64, 128):
            yield from (int8_prepare(target, dim, block, tail=tail) for tail in ("none", "mean", "linear1"))
        if fp8_sums(target):
            yield from (int8_attend(target, dim, fp8=True, tail=tail) for tail in TAILS)
            yield from (int8_prepare(target, dim, block, fp8=True) for block in (64, 128))


def all_cases() -> list[Planned]:
    """Every kernel in every shipped configuration, for every target."""
    targets = dict.fromkeys(name for name, _ in ATTEND)
    return [Planned(target, case) for target in targets for case in shipped(target)]


def representative_cases() -> list[Planned]:
    """The default call for targets of each kind, and the pass that makes the codes."""
    plan = [Planned(target, int8_attend(target, 128)) for target in _REPRESENTATIVE]
    plan.append(Planned("sm_89", int8_attend("sm_89", 128, fp8=True)))
    return [*plan, Planned("sm_89", int8_prepare("sm_89", 128, 64))]
