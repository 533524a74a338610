"""The backend `triton_hopper`: the backend `triton` with a warp-specialised `attend`, for Hopper GPUs.

Opt-in, because it has not yet run on a GPU: its results are proven by Triton's interpreter and its binaries by what
the compiler says of them. Draft, selection and tail are the kernels of `triton`. It refuses what it is not made for,
and a device where a small call differs from the reference or where the compiler did not specialise the warps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..layout import LayoutTables, build_tables
from ..policy import Policy, TailName
from ..tail import Tail
from . import triton_door
from .head_groups import head_groups
from .ops import op_name
from .reference import attend_reference
from .request import AttendRequest, BackendFailure, new_output
from .triton_backend import HEAD_DIMS, _joined, triton_missing
from .trust import OUT_OF_MEMORY, Trust, compiler_failed, in_short, kernel_key
from .warm_up import Kernels, kernels_of, small_call, small_layout, warm_up

if TYPE_CHECKING:
    from .registry import Problem

log = logging.getLogger(__name__)

UNPROVEN = (
    "the backend triton_hopper has not yet run on a GPU: compare a picture with backend triton before you trust it"
)
ARCHITECTURE = "sm_90"
Q_BLOCK = 128
K_BLOCKS = (64, 128)
# Relative L2 error that tells rounding to bfloat16 (a few 1e-3) from a wrong kernel.
_CHECK_LIMIT = 2e-2

_TRUST = Trust("its kernels for Hopper")


def hopper_refuses(problem: Problem) -> str | None:
    """Why the kernels cannot serve `problem`, in words a user can act on; None if they can."""
    return _unfit(problem) or _TRUST.reason_against(_key(problem), lambda: _first_use(problem))


def warm_up_hopper(
    problem: Problem, policy: Policy, tails: Sequence[TailName], biased: bool, report: Callable[[str], None]
) -> None:
    """Check and compile the kernels of a run beforehand; see `Backend.warm_up`. A refusal is left to the calls."""
    if _unfit(problem) is not None:
        return
    if not _TRUST.knows(_key(problem)):
        report(f"DraftAttention checks its kernels for Hopper on {problem.device}")
    if hopper_refuses(problem) is not None:
        return

    def compute(kind: Kernels, policy: Policy) -> None:
        blocks = problem.q_block, problem.k_block
        small_call(run_hopper, problem.device, problem.dtype, problem.head_dim, blocks, kind, policy)

    warm_up(_TRUST, _key(problem), kernels_of(policy, tails, biased), compute, report)


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


def _first_use(problem: Problem) -> str | None:
    """The check, and a word of caution to those whose GPU passes it; nothing where Triton interprets, for tests."""
    if problem.device.type == "cpu":
        return None
    reason = check(problem)
    if reason is None:
        log.warning("DraftAttention: %s", UNPROVEN)
    return reason


def unfit(device: torch.device, head_dim: int) -> str | None:
    """Why a device cannot run the kernels at a head size. On the CPU they run only where Triton interprets them."""
    missing = triton_missing()
    if device.type == "cpu" and missing is None and triton_door.interpreted():
        return None
    if device.type != "cuda":
        return f"its kernels run on Hopper GPUs ({ARCHITECTURE}), not on {device.type}"
    if missing is not None:
        return missing
    name = triton_door.architecture(device)
    if name != ARCHITECTURE:
        return f"its kernels run on Hopper GPUs ({ARCHITECTURE}), this is {name}: use backend 'triton'"
    if head_dim not in HEAD_DIMS:
        return f"its kernels take head sizes {HEAD_DIMS}, not {head_dim}"
    lacking: str | None = triton_door.kernel_module("attend_hopper").lacking()
    return lacking


def launch(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: Any,
    keep: Tensor,
    lists: tuple[Tensor, Tensor],
    tail: Tail | None,
    key_bias: Tensor | None,
    scale: float,
) -> Any:
    """`kernels.attend_hopper.Launched` of a call into `out`, k and v in block order; `shape` is a `Geometry`."""
    pooled = None
    if tail is not None:
        pooled_type = triton_door.kernel_module("pooled").PooledTail
        pooled = pooled_type(tail.log_count, tail.k_mean, tail.v_mean, tail.cov, tail.u, tail.w).to(q.dtype)
    config = triton_door.kernel_module("configs").hopper_config(
        q.shape[3], shape.k_block, 0 if tail is None else tail.ranks
    )
    attend = triton_door.kernel_module("attend_hopper").attend_hopper
    return attend(q, k, v, shape, *lists, keep, pooled, key_bias, scale, config, out=out)


@torch.library.custom_op(op_name("attend_hopper"), mutates_args=("out",))
def hopper_into(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    perm: Tensor,
    keep: Tensor,
    lists: Tensor,
    counts: Tensor,
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
    shape = triton_door.geometry(q.shape[2], video_tokens, q_block, k_block, perm)
    launch(out, q, k, v, shape, keep, (lists, counts), tail, key_bias, scale)


@hopper_into.register_fake
def _(*_: object) -> None:
    return None


def attend_listed(
    request: AttendRequest,
    lists: tuple[Tensor, Tensor] | None,
    in_order: tuple[Tensor, Tensor] | None,
    out: Tensor | None = None,
) -> Tensor:
    """Output (B, H, L, D) of a request.

    Args:
        lists: its selection as lists and counts, made here if None.
        in_order: k and v in block order, made here if None: these kernels cannot gather them.
        out: where to write it; None makes it.
    """
    tables, tail = request.tables, request.tail
    out = new_output(request.q) if out is None else out
    if lists is None:
        selected = triton_door.kernel_module("select").lists_of(request.keep)
        lists = selected.lists, selected.counts
    k, v = in_order or (request.k.index_select(2, tables.perm), request.v.index_select(2, tables.perm))
    parts = (None,) * 6 if tail is None else (tail.log_count, tail.k_mean, tail.v_mean, tail.cov, tail.u, tail.w)
    hopper_into(
        out,
        request.q,
        k,
        v,
        tables.perm,
        request.keep,
        *lists,
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
    return attend_listed(request, None, None)


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
    out, heads = new_output(q), q.shape[1]
    keeps, tails = [], []
    try:
        for part in head_groups(tables.layout, q.shape[0], heads):
            draft, tail, in_order = triton_door.prepare(q, k, v, tables, policy, copy=True, part=part)
            selected = triton_door.select(draft, tables, policy, scale, heads=heads, part=part)
            request = AttendRequest(q[:, part], k[:, part], v[:, part], tables, selected.keep, tail, key_bias, scale)
            attend_listed(request, (selected.lists, selected.counts), in_order, out[:, part])
            keeps.append(selected.keep)
            tails.append(tail)
            # Freed before the next group asks for the same.
            del draft, in_order, selected, request
    except Exception as error:
        # Anything else is a bug and not ours to hide.
        if not compiler_failed(error):
            raise
        reason = f"a kernel does not run on {q.device}: {in_short(error)}"
        _TRUST.withdraw(kernel_key(q.device, q.dtype, q.shape[3], tables.layout.k_block), reason)
        raise BackendFailure(reason) from error
    keep = keeps[0] if len(keeps) == 1 else torch.cat(keeps, dim=1)
    return out, AttendRequest(q, k, v, tables, keep, _joined(tails), key_bias, scale)


def check(problem: Problem) -> str | None:
    """Run small calls with and without a tail and compare them with the reference; what is wrong, or None."""
    layout = small_layout(problem.q_block, problem.k_block)
    tables = build_tables(layout, problem.device)
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, 2, layout.tokens, problem.head_dim)
    q, k, v = torch.randn(shape, generator=generator).to(problem.device, problem.dtype)
    key_bias = torch.linspace(-2, 0, layout.extra, device=problem.device)[None]
    policy, scale = Policy(density=0.4, tail="linear1"), float(problem.head_dim) ** -0.5
    try:
        full = triton_door.kernel_module("attend_hopper").SPECIALISED_WARPS
        draft, tail, in_order = triton_door.prepare(q, k, v, tables, policy, copy=True)
        selected = triton_door.select(draft, tables, policy, scale)
        lists, geometry = (selected.lists, selected.counts), triton_door.geometry_of(tables)
        assert in_order is not None
        request = AttendRequest(q, k, v, tables, selected.keep, tail, key_bias, scale)
        for asked in (request, replace(request, tail=None)):
            done = launch(new_output(q), q, *in_order, geometry, asked.keep, lists, asked.tail, key_bias, scale)
            if any(warps not in (None, full) for warps in done.warps):
                return f"Triton compiled it for {problem.device} without specialising its warps"
            truth = attend_reference(asked).double()
            off = float((done.out.double() - truth).norm() / truth.norm())
            if not off < _CHECK_LIMIT:
                return f"its output is off by {off:.1e} from the reference on {problem.device}"
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        return f"a kernel does not run on {problem.device}: {in_short(error)}"
    return None
