"""The backend `triton`: kernels for draft, selection, tail and attention on NVIDIA and AMD GPUs.

It says why it cannot serve a problem instead of failing: no Triton, an old one, a device, type or size without a
kernel, a kernel that does not compile or does not fit, or one whose one-time check against the reference failed.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..grid import TokenGrid
from ..layout import Layout, LayoutTables, build_tables
from ..policy import Policy
from ..selection import select_from_draft
from ..tail import expand_blocks
from . import triton_door
from .ops import call_op
from .reference import attend_reference
from .request import AttendRequest, BackendFailure

if TYPE_CHECKING:
    from .registry import Problem

log = logging.getLogger(__name__)

OLDEST_TRITON = (3, 3)
HEAD_DIMS = (64, 128)
BLOCKS = (64, 128)
# Relative L2 error that tells rounding to bfloat16 (a few 1e-3) from a wrong kernel.
_CHECK_LIMIT = 2e-2


@dataclass
class Trust:
    """Which kernels have shown that they are right, and why others must not be used. Safe to share between threads.

    Attributes:
        verdicts: per (device, type, head size, blocks), None for a kernel that passed its check, or what is wrong.
    """

    verdicts: dict[tuple[object, ...], str | None] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def reason_against(self, problem: Problem) -> str | None:
        """Why the kernels cannot be used for `problem`; the first call per kernel runs the check."""
        key = self._key(problem.device, problem.dtype, problem.head_dim, problem.q_block, problem.k_block)
        with self._lock:
            if key not in self.verdicts:
                # The check itself calls the kernels; it must not ask for itself.
                self.verdicts[key] = None
                self.verdicts[key] = check(problem)
            return self.verdicts[key]

    def withdraw(self, kernel: tuple[torch.device, torch.dtype, int, int, int], reason: str) -> None:
        """Stop using the kernels for such problems; says so once."""
        key = self._key(*kernel)
        with self._lock:
            if self.verdicts.get(key) is None:
                self.verdicts[key] = reason
                log.warning("DraftAttention does without its Triton kernels: %s", reason)

    @staticmethod
    def _key(device: torch.device, *kernel: object) -> tuple[object, ...]:
        index = device.index
        if device.type == "cuda" and index is None:
            index = torch.cuda.current_device()
        return (device.type, index, *kernel)


_TRUST = Trust()


@functools.cache
def triton_missing() -> str | None:
    """Why Triton cannot be used in this process, or None."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed (on Windows: pip install triton-windows)"
    numbers = re.findall(r"\d+", triton.__version__)[:2]
    if tuple(map(int, numbers)) < OLDEST_TRITON:
        return f"Triton {triton.__version__} is too old: {'.'.join(map(str, OLDEST_TRITON))} or newer is needed"
    try:
        triton_door.kernel_module("attend_pointer")
    except Exception as error:
        return f"the kernels cannot be imported: {type(error).__name__}: {error}"
    return None


def triton_refuses(problem: Problem) -> str | None:
    """Why the kernels cannot serve `problem`, in words a user can act on; None if they can."""
    if problem.device.type != "cuda":
        if problem.device.type != "cpu" or triton_missing() is not None or not triton_door.interpreted():
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
        name = triton_door.architecture(problem.device)
        triton_door.kernel_module("configs").attend_config(name, problem.head_dim, 0)
    except ValueError as error:
        return str(error)
    return _TRUST.reason_against(problem)


def attend_triton(request: AttendRequest) -> Tensor:
    """Output (B, H, L, D) of a request made elsewhere: the selection becomes lists, K and V are read where they lie."""
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
        draft, tail, in_order = triton_door.prepare(q, k, v, tables, policy, copy=True)
        selected = triton_door.select(draft, tables, policy, scale)
        request = AttendRequest(q, k, v, tables, selected.keep, tail, key_bias, scale)
        return call_op(request, lists=(selected.lists, selected.counts), in_order=in_order), request
    except Exception as error:
        # Triton's errors of compilation and of resources; anything else is a bug and not ours to hide.
        if not type(error).__module__.startswith("triton."):
            raise
        layout = tables.layout
        reason = f"a kernel does not run on {q.device}: {type(error).__name__}: {str(error).strip()[:200]}"
        _TRUST.withdraw((q.device, q.dtype, q.shape[3], layout.q_block, layout.k_block), reason)
        raise BackendFailure(reason) from error


def _off(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _tail_error(request: AttendRequest) -> float:
    """How far a linear tail's means and what its ranks and average add up to are from the core's statistics."""
    tail, tables = request.tail, request.tables
    expected = expand_blocks(request.k, request.v, tables, ("linear0",))
    if tail is None or tail.cov is None or tail.u is None or tail.w is None or expected.total is None:
        return float("inf")
    counts = expected.counts.double()
    total = tail.cov.double() * counts.sum()
    total += torch.einsum("bhgrk,bhgrv,g->bhkv", tail.u.double(), tail.w.double(), counts)
    means = max(_off(tail.k_mean, expected.k_mean), _off(tail.v_mean, expected.v_mean))
    return max(means, _off(total, expected.total))


def check(problem: Problem) -> str | None:
    """Run a small call and compare it with the reference; what is wrong, or None."""
    layout = Layout(TokenGrid(3, 9, 13), 7, 30, problem.q_block, problem.k_block)
    tables = build_tables(layout, problem.device)
    policy = Policy(density=0.4, tail="linear1")
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, 2, layout.tokens, problem.head_dim)
    q, k, v = torch.randn(shape, generator=generator).to(problem.device, problem.dtype)
    key_bias = torch.linspace(-2, 0, layout.extra, device=problem.device)[None]
    scale = float(problem.head_dim) ** -0.5
    try:
        out, request = run_triton(q, k, v, tables, policy, key_bias, scale)
        gathered = attend_triton(request)
        draft, _, _ = triton_door.prepare(q, k, v, tables, policy, copy=False)
        expected_keep = select_from_draft(draft, tables, policy, scale)
        truth = attend_reference(request)
        errors = [_off(out, truth), _off(gathered, truth), _tail_error(request)]
        pairs = int((request.keep ^ expected_keep).sum())
    except Exception as error:
        return f"a kernel does not run on {problem.device}: {type(error).__name__}: {str(error).strip()[:200]}"
    if pairs:
        return f"its selection differs from the reference's in {pairs} block pairs on {problem.device}"
    if not max(errors) < _CHECK_LIMIT:
        return f"its output is off by {max(errors):.1e} from the reference on {problem.device}"
    return None
