"""The registry: every backend with what it can serve, in the order `auto` tries them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.policy import TailName
from .call_kind import Problem as Problem
from .flex.attend import attend_flex, flex_refuses
from .reference import attend_reference
from .request import AttendRequest
from .torch_chunks import attend_chunks
from .torch_rows import attend_rows
from .triton.hopper import attend_hopper, hopper_refuses, run_hopper, warm_up_hopper
from .triton.pointer import attend_triton, run_triton, triton_refuses, warm_up_triton


class NoBackendError(ValueError):
    """No backend can serve a call; the message carries every reason."""


@dataclass(frozen=True)
class Backend:
    """One way to compute an `AttendRequest`.

    Attributes:
        name: what users write.
        attend: computes the request.
        refuses: why it cannot serve a problem, in words a user can act on; None if it can.
        automatic: whether `auto` may pick it.
        by_name_on: device types where it serves only those who ask for it by name.
        run: computes a whole call from q, k, v, tables, policy, key bias and scale, draft, selection and tail included,
            and returns the output and the request it amounts to; None for backends that leave those to the core.
        warm_up: compiles and checks what a run needs beforehand, given its problem, further tails its heads may take
            and what to tell the user with; None where nothing is compiled or it cannot be done ahead.
    """

    name: str
    attend: Callable[[AttendRequest], Tensor]
    refuses: Callable[[Problem], str | None]
    automatic: bool = True
    by_name_on: tuple[str, ...] = ()
    run: Callable[..., tuple[Tensor, AttendRequest]] | None = None
    warm_up: Callable[[Problem, Sequence[TailName], Callable[[str], None]], None] | None = None


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _needs_float(problem: Problem) -> str | None:
    if problem.dtype not in _FLOATS:
        return f"{problem.dtype} is not a floating-point type it knows"
    return None


def attend_torch(request: AttendRequest) -> Tensor:
    """The portable backend: a loop over query blocks on the CPU, groups of them where launching kernels costs."""
    return attend_rows(request) if request.q.device.type == "cpu" else attend_chunks(request)


def backends() -> tuple[Backend, ...]:
    """All backends, best first."""
    return (
        # On the CPU only where Triton interprets its kernels, which is for tests.
        Backend("triton", attend_triton, triton_refuses, by_name_on=("cpu",), run=run_triton, warm_up=warm_up_triton),
        # Has not yet run on a GPU.
        Backend(
            "triton_hopper", attend_hopper, hopper_refuses, automatic=False, run=run_hopper, warm_up=warm_up_hopper
        ),
        # On the CPU it compiles for longer than most runs would gain from it.
        Backend("flex", attend_flex, flex_refuses, by_name_on=("cpu",)),
        Backend("torch", attend_torch, _needs_float),
        Backend("reference", attend_reference, _needs_float, automatic=False),
    )


def backend_names() -> tuple[str, ...]:
    return ("auto", *(backend.name for backend in backends()))


def choose_backend(name: str, problem: Problem) -> Backend:
    """The backend called `name`, or for `auto` the first one that serves `problem`.

    Raises:
        ValueError: if the name is unknown.
        NoBackendError: if the named backend, or every automatic one, refuses the problem; the message says why.
    """
    known = backends()
    if name != "auto":
        for backend in known:
            if backend.name == name:
                reason = backend.refuses(problem)
                if reason is not None:
                    raise NoBackendError(f"backend {name!r} cannot serve this call: {reason}; use backend 'auto'")
                return backend
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(backend_names())}")
    reasons = []
    for backend in known:
        if _considers(backend, problem):
            reason = backend.refuses(problem)
            if reason is None:
                return backend
            reasons.append(f"{backend.name}: {reason}")
    raise NoBackendError("no backend can serve this call: " + "; ".join(reasons))


def prepare_backend(
    name: str,
    problem: Problem,
    tails: Sequence[TailName] = (),
    *,
    report: Callable[[str], None] = lambda message: None,
) -> None:
    """Compile what the calls of a run will need, before the first of them; returns at once where that is done.

    Args:
        name: of the backend the calls will ask for, or "auto".
        problem: of the run as its policy asks for it.
        tails: what heads may take beside the policy's own.
        report: told in words what is being compiled, before it is.
    """
    for backend in backends():
        if not (_considers(backend, problem) if name == "auto" else backend.name == name):
            continue
        if backend.warm_up is not None:
            backend.warm_up(problem, tails, report)
        if name != "auto" or backend.refuses(problem) is None:
            return


def tails_served(name: str, problem: Problem, tails: Sequence[TailName]) -> tuple[TailName, ...]:
    """Those of `tails` that the backend called `name` can give to the heads of a problem."""
    backend = next(backend for backend in backends() if backend.name == name)
    return tuple(tail for tail in tails if backend.refuses(problem.with_tail(tail)) is None)


def passed_over(taken: str, problem: Problem) -> str | None:
    """Why `auto` did not take the first backend it considers on a GPU but `taken`; None if it did."""
    best = next(backend for backend in backends() if _considers(backend, problem))
    if problem.device.type != "cuda" or best.name == taken:
        return None
    return f"backend {taken} serves this run, not the faster {best.name}: {best.refuses(problem)}"


def _considers(backend: Backend, problem: Problem) -> bool:
    """Whether `auto` may take a backend where the problem is."""
    return backend.automatic and problem.device.type not in backend.by_name_on
