"""The backend `triton`: kernels for draft, selection, tail and attention on NVIDIA and AMD GPUs.

It says why it cannot serve a problem instead of failing: no Triton, an old or a broken one, a device, type or size
without a kernel, a kernel that does not compile or does not fit, or one whose one-time check against the reference
failed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from ...geometry.layout import LayoutTables
from ...method.policy import Policy, TailName
from ..call_kind import Problem, Variant
from ..request import AttendRequest, BackendFailure
from . import door, self_check
from .op import call_op
from .trust import Trust, compiler_failed, in_short, kernel_key, short_of_memory
from .warm_up import warm_up
from .whole_call import whole_call

OLDEST_TRITON = (3, 3)
HEAD_DIMS = (64, 128)
BLOCKS = (64, 128)

_LINEAR: tuple[TailName, ...] = ("linear0", "linear1", "linear2")

_TRUST = Trust("its Triton kernels")


@functools.cache
def triton_missing() -> str | None:
    """Why Triton cannot be used in this process, or None."""
    try:
        import triton

        version = str(triton.__version__)
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return "Triton is not installed (on Windows: pip install triton-windows)"
        return f"Triton is installed but broken: {in_short(error)}"
    except Exception as error:
        return f"Triton is installed but broken: {in_short(error)}"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TRITON:
        return f"Triton {version} is too old: {'.'.join(map(str, OLDEST_TRITON))} or newer is needed"
    try:
        door.kernel_module("attend_pointer")
    except Exception as error:
        return f"the kernels cannot be imported: {in_short(error)}"
    return None


def _unfit(problem: Problem) -> str | None:
    """Why no kernel is made for `problem`, without trying any; None if one is."""
    if problem.device.type != "cuda":
        if problem.device.type != "cpu" or triton_missing() is not None or not door.interpreted():
            return f"its kernels run on NVIDIA and AMD GPUs, not on {problem.device.type}"
        return None
    missing = triton_missing()
    if missing is not None:
        return missing
    if problem.dtype not in (torch.float16, torch.bfloat16):
        return f"its kernels take float16 and bfloat16, not {problem.dtype}"
    if problem.head_dim not in HEAD_DIMS:
        return f"its kernels take head sizes {HEAD_DIMS}, not {problem.head_dim}"
    if problem.q_block not in BLOCKS or problem.k_block not in BLOCKS:
        return f"its kernels take blocks of {BLOCKS} tokens, not {problem.q_block}/{problem.k_block}"
    try:
        name = door.architecture(problem.device)
        door.kernel_module("configs").attend_config(name, problem.head_dim, 0)
    except ValueError as error:
        return str(error)
    return None


def _key(problem: Problem) -> tuple[Hashable, ...]:
    return kernel_key(problem.device, problem.dtype, problem.head_dim, problem.q_block, problem.k_block)


def triton_refuses(problem: Problem) -> str | None:
    """Why the kernels cannot serve `problem`, in words a user can act on; None if they can."""
    unfit = _unfit(problem)
    if unfit is not None:
        return unfit
    unchecked = under_test(problem.device)
    return _TRUST.reason_against_any(
        _key(problem), problem.variants, lambda variant: None if unchecked else check(problem, variant)
    )


def under_test(device: torch.device) -> bool:
    """Whether kernels are not checked before use: where Triton interprets them they are what is being tested."""
    return device.type == "cpu"


def warm_up_triton(problem: Problem, tails: Sequence[TailName], report: Callable[[str], None]) -> None:
    """Compile and check the kernels of a run beforehand; see `Backend.warm_up`. A refusal is left to the calls."""
    if _unfit(problem) is None:
        warm_up(_TRUST, _key(problem), problem, tails, check, report)


def check(problem: Problem, variant: Variant) -> str | None:
    """What is wrong with the kernels of a whole call, or None; see `self_check.check`."""
    return self_check.check(call_op, problem, variant)


def check_gathered(problem: Problem, variant: Variant) -> str | None:
    """What is wrong with the kernels of a request made elsewhere, or None."""
    return self_check.check_gathered(call_op, problem, variant)


def attend_triton(request: AttendRequest) -> Tensor:
    """Output (B, H, L, D) of a request made elsewhere: the selection becomes lists, K and V are read where they lie.

    Raises:
        BackendFailure: if the kernels for it do not run on this device or are wrong there. Whole calls have others.
    """
    layout, tail = request.tables.layout, request.tail
    name: TailName = "none"
    if tail is not None:
        name = "mean" if tail.cov is None else _LINEAR[tail.ranks]
    policy = Policy(tail=name)
    problem = Problem.of(request.q, layout.q_block, layout.k_block, policy, biased=request.key_bias is not None)
    kernel = *_key(problem), "gathered"
    unchecked = under_test(problem.device)
    reason = _TRUST.reason_against_any(
        kernel, problem.variants, lambda variant: None if unchecked else check_gathered(problem, variant)
    )
    if reason is not None:
        raise BackendFailure(reason)
    return call_op(request)


def run_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    policy: Policy,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, AttendRequest]:
    """A whole call on the device: one pass over Q, one over K and V, selection, attention. No host synchronisation.

    Raises:
        BackendFailure: if a kernel does not compile for this device or does not fit on it; the registry knows by then.
    """
    try:
        return whole_call(call_op, q, k, v, tables, policy, key_bias, scale)
    except Exception as error:
        # Anything else is a bug and not ours to hide.
        if not (short_of_memory(error) or compiler_failed(error)):
            raise
        layout = tables.layout
        problem = Problem.of(q, layout.q_block, layout.k_block, policy, biased=key_bias is not None)
        # The dearest tail's kernels ran.
        raise _TRUST.failure((*_key(problem), problem.variants[-1]), q.device, error) from error
