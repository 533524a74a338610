"""The backend `triton_hopper`: the backend `triton` with a warp-specialised `attend`, for Hopper GPUs.

Opt-in, because it has not yet run on a GPU: its results are proven by Triton's interpreter and its binaries by what
the compiler says of them. Draft, selection and tail are the kernels of `triton`. It refuses what it is not made for,
and a device where a small call differs from the reference or where the compiler did not specialise the warps.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..grid import TokenGrid
from ..layout import Layout, LayoutTables, build_tables
from ..policy import Policy
from ..tail import Tail
from . import triton_door
from .reference import attend_reference
from .request import AttendRequest, BackendFailure, new_output
from .triton_backend import HEAD_DIMS, triton_missing

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


@dataclass
class Verdicts:
    """Per (device, type, head size, key block): None for kernels that passed their check, or why they are not used."""

    reasons: dict[tuple[object, ...], str | None] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def reason_against(self, problem: Problem) -> str | None:
        """Why the kernels cannot be used for `problem`; the first call per kernel runs the check."""
        key = self._key(problem.device, problem.dtype, problem.head_dim, problem.k_block)
        with self._lock:
            if key not in self.reasons:
                self.reasons[key] = check(problem)
                if self.reasons[key] is None and problem.device.type == "cuda":
                    log.warning("DraftAttention: %s", UNPROVEN)
            return self.reasons[key]

    def withdraw(self, kernel: tuple[torch.device, torch.dtype, int, int], reason: str) -> None:
        """Stop using the kernels for such problems; says so once."""
        key = self._key(*kernel)
        with self._lock:
            if self.reasons.get(key) is None:
                self.reasons[key] = reason
                log.warning("DraftAttention does without its kernels for Hopper: %s", reason)

    @staticmethod
    def _key(device: torch.device, *kernel: object) -> tuple[object, ...]:
        index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
        return (device.type, index, *kernel)


_VERDICTS = Verdicts()


def hopper_refuses(problem: Problem) -> str | None:
    """Why the kernels cannot serve `problem`, in words a user can act on; None if they can."""
    why = unfit(problem.device, problem.head_dim)
    if why is not None or problem.device.type == "cpu":
        return why
    if problem.dtype not in (torch.float16, torch.bfloat16):
        return f"its kernels take float16 and bfloat16, not {problem.dtype}"
    if problem.q_block != Q_BLOCK or problem.k_block not in K_BLOCKS:
        blocks = f"{problem.q_block}/{problem.k_block}"
        return f"its kernels take query blocks of {Q_BLOCK} and key blocks of {K_BLOCKS} tokens, not {blocks}"
    return _VERDICTS.reason_against(problem)


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
    """`kernels.attend_hopper.Launched` of a call whose k and v are in block order; `shape` is a `Geometry`."""
    pooled = None
    if tail is not None:
        pooled_type = triton_door.kernel_module("pooled").PooledTail
        pooled = pooled_type(tail.log_count, tail.k_mean, tail.v_mean, tail.cov, tail.u, tail.w).to(q.dtype)
    config = triton_door.kernel_module("configs").hopper_config(
        q.shape[3], shape.k_block, 0 if tail is None else tail.ranks
    )
    attend = triton_door.kernel_module("attend_hopper").attend_hopper
    return attend(q, k, v, shape, *lists, keep, pooled, key_bias, scale, config)


@torch.library.custom_op("draftattention::attend_hopper", mutates_args=())
def hopper_op(
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
) -> Tensor:
    """Output (B, H, L, D) of attention over listed block pairs, k and v in block order; see `ops.attend_op`."""
    tail = None
    if log_count is not None and k_mean is not None and v_mean is not None:
        tail = Tail(log_count, k_mean, v_mean, cov, u, w)
    shape = triton_door.geometry(q.shape[2], video_tokens, q_block, k_block, perm)
    out: Tensor = launch(q, k, v, shape, keep, (lists, counts), tail, key_bias, scale).out
    return out


@hopper_op.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return new_output(q)


def attend_listed(
    request: AttendRequest, lists: tuple[Tensor, Tensor] | None, in_order: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Output (B, H, L, D) of a request.

    Args:
        lists: its selection as lists and counts, made here if None.
        in_order: k and v in block order, made here if None: these kernels cannot gather them.
    """
    tables, tail = request.tables, request.tail
    if lists is None:
        selected = triton_door.kernel_module("select").lists_of(request.keep)
        lists = selected.lists, selected.counts
    k, v = in_order or (request.k.index_select(2, tables.perm), request.v.index_select(2, tables.perm))
    parts = (None,) * 6 if tail is None else (tail.log_count, tail.k_mean, tail.v_mean, tail.cov, tail.u, tail.w)
    out: Tensor = hopper_op(
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
    """A whole call on the device, like `run_triton`.

    Raises:
        BackendFailure: if a kernel does not compile for this device or does not fit on it; the registry knows by then.
    """
    try:
        request, lists, in_order = _make_call(q, k, v, tables, policy, key_bias, scale)
        return attend_listed(request, lists, in_order), request
    except Exception as error:
        # Triton's errors of compilation and of resources; anything else is a bug and not ours to hide.
        if not type(error).__module__.startswith("triton."):
            raise
        reason = f"a kernel does not run on {q.device}: {type(error).__name__}: {str(error).strip()[:200]}"
        _VERDICTS.withdraw((q.device, q.dtype, q.shape[3], tables.layout.k_block), reason)
        raise BackendFailure(reason) from error


def _make_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    policy: Policy,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[AttendRequest, tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """Draft, tail, selection and copies by the kernels of `triton`: the request, its lists, K and V in block order."""
    draft, tail, in_order = triton_door.prepare(q, k, v, tables, policy, copy=True)
    selected = triton_door.select(draft, tables, policy, scale)
    request = AttendRequest(q, k, v, tables, selected.keep, tail, key_bias, scale)
    return request, (selected.lists, selected.counts), in_order


def check(problem: Problem) -> str | None:
    """Run small calls with and without a tail and compare them with the reference; what is wrong, or None."""
    layout = Layout(TokenGrid(3, 9, 13), 7, 30, problem.q_block, problem.k_block)
    tables = build_tables(layout, problem.device)
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, 2, layout.tokens, problem.head_dim)
    q, k, v = torch.randn(shape, generator=generator).to(problem.device, problem.dtype)
    key_bias = torch.linspace(-2, 0, layout.extra, device=problem.device)[None]
    geometry, scale = triton_door.geometry_of(tables), float(problem.head_dim) ** -0.5
    try:
        full = triton_door.kernel_module("attend_hopper").SPECIALISED_WARPS
        request, lists, in_order = _make_call(q, k, v, tables, Policy(density=0.4, tail="linear1"), key_bias, scale)
        assert in_order is not None
        for asked in (request, replace(request, tail=None)):
            done = launch(q, *in_order, geometry, asked.keep, lists, asked.tail, key_bias, scale)
            if any(warps not in (None, full) for warps in done.warps):
                return f"Triton compiled it for {problem.device} without specialising its warps"
            truth = attend_reference(asked).double()
            off = float((done.out.double() - truth).norm() / truth.norm())
            if not off < _CHECK_LIMIT:
                return f"its output is off by {off:.1e} from the reference on {problem.device}"
    except Exception as error:
        return f"a kernel does not run on {problem.device}: {type(error).__name__}: {str(error).strip()[:200]}"
    return None
