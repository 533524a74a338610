"""The backend `triton_hopper`: the backend `triton` with a warp-specialised `attend`, for Hopper GPUs.

Opt-in, because it has not yet run on a GPU: its results are proven by Triton's interpreter and its binaries by what
the compiler says of them. Draft, selection and tail are the kernels of `triton`. It refuses what it is not made for,
and a device where a small call differs from the reference or where the compiler did not specialise the warps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...geometry.layout import LayoutTables
from ...method.policy import Policy, TailName
from ...method.tail.expand import Tail
from ..call_kind import Problem, Variant
from ..request import AttendRequest, Listed, new_output
from . import door, self_check
from .op import op_name
from .pointer import HEAD_DIMS, triton_missing, under_test
from .trust import Trust, compiler_failed, in_short, kernel_key, short_of_memory
from .warm_up import warm_up
from .whole_call import whole_call

log = logging.getLogger(__name__)

UNPROVEN = (
    "the backend triton_hopper has not yet run on a GPU: compare a picture with backend triton before you trust it"
)
ARCHITECTURE = "sm_90"
Q_BLOCK = 128
K_BLOCKS = (64, 128)

_TRUST = Trust("its kernels for Hopper")


def hopper_refuses(problem: Problem) -> str | None:
    """Why the kernels cannot serve `problem`, in words a user can act on; None if they can."""
    unfit = _unfit(problem)
    if unfit is not None:
        return unfit
    unchecked = under_test(problem.device)
    reason = _TRUST.reason_against_any(
        _key(problem), problem.variants, lambda variant: None if unchecked else check(problem, variant)
    )
    if reason is None and not unchecked:
        _TRUST.reason_against(kernel_key(problem.device, UNPROVEN), _caution)
    return reason


def _caution() -> None:
    """A word to those whose GPU passes the check."""
    log.warning("DraftAttention: %s", UNPROVEN)


def warm_up_hopper(problem: Problem, tails: Sequence[TailName], report: Callable[[str], None]) -> None:
    """Compile and check the kernels of a run beforehand; see `Backend.warm_up`. A refusal is left to the calls."""
    if _unfit(problem) is None:
        warm_up(_TRUST, _key(problem), problem, tails, check, report)


def _key(problem: Problem) -> tuple[Hashable, ...]:
    return kernel_key(problem.device, problem.dtype, problem.head_dim, problem.k_block)


def _unfit(problem: Problem) -> str | None:
    """Why no kernel is made for `problem`, without trying any; None if one is."""
    why = unfit(problem.device, problem.head_dim)
    if why is not None or problem.device.type == "cpu":
        return why
    if problem.dtype not in (torch.float16, torch.bfloat16):
        return f"its kernels take float16 and bfloat16, not {problem.dtype}"
    if problem.q_block != Q_BLOCK or problem.k_block not in K_BLOCKS:
        blocks = f"{problem.q_block}/{problem.k_block}"
        return f"its kernels take query blocks of {Q_BLOCK} and key blocks of {K_BLOCKS} tokens, not {blocks}"
    return None


def unfit(device: torch.device, head_dim: int) -> str | None:
    """Why a device cannot run the kernels at a head size. On the CPU they run only where Triton interprets them."""
    missing = triton_missing()
    if device.type == "cpu" and missing is None and door.interpreted():
        return None
    if device.type != "cuda":
        return f"its kernels run on Hopper GPUs ({ARCHITECTURE}), not on {device.type}"
    if missing is not None:
        return missing
    name = door.architecture(device)
    if name != ARCHITECTURE:
        return f"its kernels run on Hopper GPUs ({ARCHITECTURE}), this is {name}: use backend 'triton'"
    if head_dim not in HEAD_DIMS:
        return f"its kernels take head sizes {HEAD_DIMS}, not {head_dim}"
    try:
        lacking: str | None = door.kernel_module("attend_hopper").lacking()
    except Exception as error:
        return f"the kernels cannot be imported: {in_short(error)}"
    return lacking


def launch(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: Any,
    listed: Listed,
    tail: Tail | None,
    key_bias: Tensor | None,
    scale: float,
) -> Any:
    """`kernels.attend_hopper.Launched` of a call into `out`, k and v in block order; `shape` is a `Geometry`."""
    pooled = None
    if tail is not None:
        pooled_type = door.kernel_module("pooled").PooledTail
        pooled = pooled_type(tail.log_count, tail.k_mean, tail.v_mean, tail.cov, tail.u, tail.w).to(q.dtype)
    config = door.kernel_module("configs").hopper_config(q.shape[3], shape.k_block, 0 if tail is None else tail.ranks)
    attend = door.kernel_module("attend_hopper").attend_hopper
    return attend(q, k, v, shape, *listed, pooled, key_bias, scale, config, out=out)


@torch.library.custom_op(op_name("attend_hopper"), mutates_args=("out",))
def hopper_into(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    perm: Tensor,
    lists: Tensor,
    counts: Tensor,
    words: Tensor,
    log_count: Tensor | None,
    k_mean: Tensor | None,
    v_mean: Tensor | None,
    cov: Tensor | None,
    u: Tensor | None,
    w: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
    video_tokens: int,
    q_block: int,
    k_block: int,
) -> None:
    """Attention over listed block pairs into `out` (B, H, L, D), k and v in block order; see `ops.attend_into`."""
    tail = None
    if log_count is not None and k_mean is not None and v_mean is not None:
        tail = Tail(log_count, k_mean, v_mean, cov, u, w)
    # The kernels walk these without strides.
    shape = door.geometry(q.shape[2], video_tokens, q_block, k_block, perm.contiguous())
    listed = Listed(lists.contiguous(), counts.contiguous(), words.contiguous())
    launch(out, q, k, v, shape, listed, tail, key_bias, scale)


@hopper_into.register_fake
def _(*_: object) -> None:
    return None


def attend_listed(
    request: AttendRequest,
    listed: Listed | None = None,
    in_order: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Output (B, H, L, D) of a request.

    Args:
        listed: its selection as kernels walk it, made here if None.
        in_order: k and v in block order, made here if None: these kernels cannot gather them.
        out: where to write it; None makes it.
    """
    tables, tail = request.tables, request.tail
    out = new_output(request.q) if out is None else out
    if listed is None:
        listed = door.listed_of(request.keep)
    k, v = in_order or (request.k.index_select(2, tables.perm), request.v.index_select(2, tables.perm))
    parts = (None,) * 6 if tail is None else (tail.log_count, tail.k_mean, tail.v_mean, tail.cov, tail.u, tail.w)
    hopper_into(
        out,
        request.q,
        k,
        v,
        tables.perm,
        *listed,
        *parts,
        request.key_bias,
        request.scale,
        tables.layout.grid.tokens,
        tables.layout.q_block,
        tables.layout.k_block,
    )
    return out


def attend_hopper(request: AttendRequest) -> Tensor:
    """Output (B, H, L, D) of a request made elsewhere."""
    return attend_listed(request)


def run_hopper(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    policy: Policy,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, AttendRequest]:
    """A whole call on the device, like `run_triton`: a group of heads after the other.

    Raises:
        BackendFailure: if a kernel does not compile for this device or does not fit on it; the registry knows by then.
    """
    try:
        return whole_call(attend_listed, q, k, v, tables, policy, key_bias, scale)
    except Exception as error:
        # Anything else is a bug and not ours to hide.
        if not (short_of_memory(error) or compiler_failed(error)):
            raise
        layout = tables.layout
        problem = Problem.of(q, layout.q_block, layout.k_block, policy, biased=key_bias is not None)
        # The dearest tail's kernels ran.
        raise _TRUST.failure((*_key(problem), problem.variants[-1]), q.device, error) from error


def check(problem: Problem, variant: Variant) -> str | None:
    """What is wrong with the kernels of a whole call, or None: with their results, or with their warps."""
    warps: list[int | None] = []

    def attend(
        request: AttendRequest,
        *,
        listed: Listed,
        in_order: tuple[Tensor, Tensor] | None,
        out: Tensor,
    ) -> None:
        assert in_order is not None
        shape, tail, key_bias = door.geometry_of(request.tables), request.tail, request.key_bias
        done = launch(out, request.q, *in_order, shape, listed, tail, key_bias, request.scale)
        warps.extend(done.warps)

    wrong = self_check.check(attend, problem, variant)
    full = door.kernel_module("attend_hopper").SPECIALISED_WARPS
    if wrong is None and any(found not in (None, full) for found in warps):
        return f"Triton compiled it for {problem.device} without specialising its warps ({variant})"
    return wrong
