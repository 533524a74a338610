"""The backend `triton`: kernels for draft, selection, tail and attention on NVIDIA and AMD GPUs.

It says why it cannot serve a problem instead of failing: no Triton, an old one, a device, type or size without a
kernel, a kernel that does not compile or does not fit, or one whose one-time check against the reference failed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layout import LayoutTables, build_tables
from ..policy import Policy, TailName
from ..selection import select_from_draft
from ..tail import Tail, expand_blocks
from . import triton_door
from .head_groups import head_groups
from .ops import call_op
from .reference import attend_reference
from .request import AttendRequest, BackendFailure, new_output
from .trust import OUT_OF_MEMORY, Trust, compiler_failed, in_short, kernel_key
from .warm_up import Kernels, kernels_of, small_call, small_layout, warm_up

if TYPE_CHECKING:
    from .registry import Problem

OLDEST_TRITON = (3, 3)
HEAD_DIMS = (64, 128)
BLOCKS = (64, 128)
# Relative L2 error that tells rounding to bfloat16 (a few 1e-3) from a wrong kernel.
_CHECK_LIMIT = 2e-2


_TRUST = Trust("its Triton kernels")


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
        return f"the kernels cannot be imported: {in_short(error)}"
    return None


def _unfit(problem: Problem) -> str | None:
    """Why no kernel is made for `problem`, without trying any; None if one is."""
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
    return None


def _key(problem: Problem) -> tuple[Hashable, ...]:
    return kernel_key(problem.device, problem.dtype, problem.head_dim, problem.q_block, problem.k_block)


def triton_refuses(problem: Problem) -> str | None:
    """Why the kernels cannot serve `problem`, in words a user can act on; None if they can."""
    unfit = _unfit(problem)
    if unfit is not None:
        return unfit
    # Where Triton interprets, its kernels are under test.
    checked = problem.device.type != "cpu"
    return _TRUST.reason_against(_key(problem), lambda: check(problem) if checked else None)


def warm_up_triton(
    problem: Problem, policy: Policy, tails: Sequence[TailName], biased: bool, report: Callable[[str], None]
) -> None:
    """Check and compile the kernels of a run beforehand; see `Backend.warm_up`. A refusal is left to the calls."""
    if _unfit(problem) is not None:
        return
    kernel = _key(problem)
    if not _TRUST.knows(kernel):
        report(f"DraftAttention checks its Triton kernels on {problem.device}")
    if triton_refuses(problem) is not None:
        return
    blocks = (problem.q_block, problem.k_block)

    def compute(kind: Kernels, policy: Policy) -> None:
        small_call(run_triton, problem.device, problem.dtype, problem.head_dim, blocks, kind, policy)

    warm_up(_TRUST, kernel, kernels_of(policy, tails, biased), compute, report)


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
        return _whole_call(q, k, v, tables, policy, key_bias, scale)
    except Exception as error:
        # Anything else is a bug and not ours to hide.
        if not compiler_failed(error):
            raise
        layout = tables.layout
        reason = f"a kernel does not run on {q.device}: {in_short(error)}"
        _TRUST.withdraw(kernel_key(q.device, q.dtype, q.shape[3], layout.q_block, layout.k_block), reason)
        raise BackendFailure(reason) from error


def _whole_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    policy: Policy,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, AttendRequest]:
    """`run_triton`, a group of heads after the other; errors as they come."""
    out, heads = new_output(q), q.shape[1]
    keeps, tails = [], []
    for part in head_groups(tables.layout, q.shape[0], heads):
        draft, tail, in_order = triton_door.prepare(q, k, v, tables, policy, copy=True, part=part)
        selected = triton_door.select(draft, tables, policy, scale, heads=heads, part=part)
        request = AttendRequest(q[:, part], k[:, part], v[:, part], tables, selected.keep, tail, key_bias, scale)
        call_op(request, lists=(selected.lists, selected.counts), in_order=in_order, out=out[:, part])
        keeps.append(selected.keep)
        tails.append(tail)
        # Freed before the next group asks for the same.
        del draft, in_order, selected, request
    keep = keeps[0] if len(keeps) == 1 else torch.cat(keeps, dim=1)
    return out, AttendRequest(q, k, v, tables, keep, _joined(tails), key_bias, scale)


def _joined(tails: list[Tail | None]) -> Tail | None:
    """The tail of all heads from those of groups, which have the same parts."""
    known = [tail for tail in tails if tail is not None]
    if len(known) < 2:
        return known[0] if known else None

    def join(*parts: Tensor | None) -> Tensor | None:
        found = [part for part in parts if part is not None]
        return torch.cat(found, dim=1) if found else None

    log_count = torch.cat([tail.log_count for tail in known])
    k_mean, v_mean = (
        torch.cat([tail.k_mean for tail in known], dim=1),
        torch.cat([tail.v_mean for tail in known], dim=1),
    )
    cov, u, w = (join(*(getattr(tail, name) for tail in known)) for name in ("cov", "u", "w"))
    return Tail(log_count, k_mean, v_mean, cov, u, w)


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
    """Run a small call and compare it with the reference; what is wrong, or None. Raises where memory is short."""
    layout = small_layout(problem.q_block, problem.k_block)
    tables = build_tables(layout, problem.device)
    policy = Policy(density=0.4, tail="linear1")
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, 2, layout.tokens, problem.head_dim)
    q, k, v = torch.randn(shape, generator=generator).to(problem.device, problem.dtype)
    key_bias = torch.linspace(-2, 0, layout.extra, device=problem.device)[None]
    scale = float(problem.head_dim) ** -0.5
    try:
        out, request = _whole_call(q, k, v, tables, policy, key_bias, scale)
        gathered = attend_triton(request)
        draft, _, _ = triton_door.prepare(q, k, v, tables, policy, copy=False)
        expected_keep = select_from_draft(draft, tables, policy, scale)
        truth = attend_reference(request)
        errors = [_off(out, truth), _off(gathered, truth), _tail_error(request)]
        pairs = int((request.keep ^ expected_keep).sum())
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        return f"a kernel does not run on {problem.device}: {in_short(error)}"
    if pairs:
        return f"its selection differs from the reference's in {pairs} block pairs on {problem.device}"
    if not max(errors) < _CHECK_LIMIT:
        return f"its output is off by {max(errors):.1e} from the reference on {problem.device}"
    return None
