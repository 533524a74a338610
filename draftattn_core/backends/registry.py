"""The registry: every backend with what it can serve, in the order `auto` tries them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.policy import Bits, TailName
from ..method.rules.call import RuleCall
from ..phrase import CLAUSES, REMEDY, Joined, Phrase, Text
from .call_kind import CallKind
from .cpu.rows import attend_rows
from .flex.attend import attend_flex, flex_refuses
from .kitchen.backend import KITCHEN
from .nearest import Nearest
from .reference import attend_reference
from .request import AttendRequest
from .torch_chunks import attend_chunks
from .triton import machine
from .triton.backend import TritonBackend
from .triton.gluon import GLUON
from .triton.hopper import HOPPER
from .triton.pointer import POINTER


class NoBackendError(ValueError):
    """No backend can serve a call; the message carries every reason."""


@dataclass(frozen=True)
class Backend:
    """One way to compute an `AttendRequest`.

    Attributes:
        name: what users write.
        attend: computes the request.
        refuses: why it cannot serve a kind of call, in words a user can act on; None if it can.
        automatic: whether `auto` may pick it.
        not_automatic_on: device types where it serves only those who ask for it by name.
        run: computes a whole call, draft, tail and (unless the core hands it one) selection included, and returns the
            output and the request it amounts to; None for backends that leave those to the core.
        warm_up: compiles and checks what a run needs beforehand, given the kind of its calls, further tails that heads
            may take and a function that is called with a message meanwhile; None where nothing is compiled or it
            cannot be done ahead.
        nearest: what it serves in place of a kind of call that it refuses, None if nothing comes near; None for
            backends that never do. A run asks for it where `auto` finds nothing better.
        bits: of the scores it can compute; what a policy asks for beyond them is computed in 16.
    """

    name: str
    attend: Callable[[AttendRequest], Tensor]
    refuses: Callable[[CallKind], Text | None]
    automatic: bool = True
    not_automatic_on: tuple[str, ...] = ()
    run: Callable[[RuleCall, Tensor | None], tuple[Tensor, AttendRequest]] | None = None
    warm_up: Callable[[CallKind, Sequence[TailName], Callable[[Text], None]], None] | None = None
    nearest: Callable[[CallKind], Nearest | None] | None = None
    bits: tuple[Bits, ...] = (16,)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _needs_float(kind: CallKind) -> Text | None:
    if kind.dtype not in _FLOATS:
        return Phrase("refuses_type", "{dtype} is not a floating-point type it knows", dtype=str(kind.dtype))
    return None


def attend_torch(request: AttendRequest) -> Tensor:
    """The portable backend: a loop over query blocks on the CPU, groups of them where launching kernels costs."""
    return attend_rows(request) if request.q.device.type == "cpu" else attend_chunks(request)


def _by_kernels(kernels: TritonBackend, *, automatic: bool = True, not_automatic_on: tuple[str, ...] = ()) -> Backend:
    whole = kernels.run, kernels.warm_up
    return Backend(
        kernels.name, kernels.attend, kernels.refuses, automatic, not_automatic_on, *whole, bits=kernels.bits
    )


def _by_kitchen() -> Backend:
    whole = KITCHEN.run, KITCHEN.warm_up, KITCHEN.nearest
    return Backend("kitchen", KITCHEN.attend, KITCHEN.refuses, True, ("cpu",), *whole)


def backends() -> tuple[Backend, ...]:
    """All backends, best first."""
    return (
        # On the CPU only where Triton interprets its kernels, which is for tests.
        _by_kernels(POINTER, not_automatic_on=("cpu",)),
        # Have not yet run on a GPU.
        _by_kernels(HOPPER, automatic=False),
        _by_kernels(GLUON, automatic=False),
        # On the CPU it compiles for longer than most runs would gain from it.
        Backend("flex", attend_flex, flex_refuses, not_automatic_on=("cpu",)),
        # Behind what computes a call as it was asked for, before what is slower than dense attention on a GPU.
        _by_kitchen(),
        Backend("torch", attend_torch, _needs_float),
        Backend("reference", attend_reference, _needs_float, automatic=False, bits=(16, 8)),
    )


def backend_names() -> tuple[str, ...]:
    return ("auto", *(backend.name for backend in backends()))


def choose_backend(name: str, kind: CallKind) -> Backend:
    """The backend called `name`, or for `auto` the first one that serves `kind`.

    Raises:
        ValueError: if the name is unknown.
        NoBackendError: if the named backend, or every automatic one, refuses the kind; the message says why.
    """
    known = backends()
    if name != "auto":
        for backend in known:
            if backend.name == name:
                reason = backend.refuses(kind)
                if reason is not None:
                    raise NoBackendError(
                        Phrase(
                            "backend_cannot",
                            "backend '{name}' cannot serve this call: {reason}; use backend 'auto'",
                            name=name,
                            reason=reason,
                        )
                    )
                return backend
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(backend_names())}")
    reasons = []
    for backend in known:
        if _considers(backend, kind):
            reason = backend.refuses(kind)
            if reason is None:
                return backend
            reasons.append(Joined((backend.name, reason), REMEDY))
    reasons_told = Joined(reasons, CLAUSES)
    raise NoBackendError(Phrase("backend_none", "no backend can serve this call: {reasons}", reasons=reasons_told))


def prepare_backend(
    name: str,
    kind: CallKind,
    tails: Sequence[TailName] = (),
    *,
    codes: str = "16",
    report: Callable[[Text], None] = lambda message: None,
) -> None:
    """Compile what the calls of a run will need, before the first of them; returns at once where that is done.

    Args:
        name: of the backend the calls will ask for, or "auto".
        kind: of the run as its policy asks for it.
        tails: what heads may take beside the policy's own.
        codes: "8", "fp8" or "auto" where heads may have scores of INT8 codes: wherever possible, that with values in
            FP8, or where they are faster.
        report: called with a message before anything is compiled.
    """
    for backend in backends():
        if not (_considers(backend, kind) if name == "auto" else backend.name == name):
            continue
        if backend.warm_up is not None:
            backend.warm_up(kind, tails, report)
            if 8 in backend.bits and (codes in ("8", "fp8") or (codes == "auto" and machine.codes_first(kind.device))):
                fp8 = codes == "fp8" and machine.fp8_missing(kind.device) is None
                backend.warm_up(kind.with_bits(8, fp8), tails, report)
        if name != "auto" or backend.refuses(kind) is None:
            return


def nearest_served(name: str, kind: CallKind) -> Nearest | None:
    """What a run changes so that the backend called `name`, or for `auto` the best, can serve it; None for nothing."""
    for backend in backends():
        if not (_considers(backend, kind) if name == "auto" else backend.name == name):
            continue
        near = None if backend.nearest is None else backend.nearest(kind)
        if near is not None or backend.refuses(kind) is None:
            return near
    return None


def tails_served(name: str, kind: CallKind, tails: Sequence[TailName]) -> tuple[TailName, ...]:
    """Those of `tails` that the backend called `name` can give to the heads of a kind."""
    backend = next(backend for backend in backends() if backend.name == name)
    return tuple(tail for tail in tails if backend.refuses(kind.with_tail(tail)) is None)


def without_codes(backend: Backend, kind: CallKind) -> Text | None:
    """Why a backend computes the scores of a kind of call in 16 bits only, in words; None if it can in 8."""
    if 8 not in backend.bits:
        return Phrase("codes_none", "backend {name} has no INT8 scores", name=backend.name)
    return backend.refuses(kind.with_bits(8))


def without_fp8(backend: Backend, kind: CallKind) -> Text | None:
    """Why a backend does not multiply values of a kind of call in FP8, in words; None if it can. The reference can on
    every device, in torch."""
    if 8 not in backend.bits:
        return Phrase("codes_none", "backend {name} has no INT8 scores", name=backend.name)
    missing = None if backend.run is None else machine.fp8_missing(kind.device)
    if missing is not None:
        return missing
    return backend.refuses(kind.with_bits(8, fp8=True))


def fp8_unwanted(name: str, kind: CallKind) -> Text | None:
    """`without_fp8` of the backend called `name`."""
    return without_fp8(next(backend for backend in backends() if backend.name == name), kind)


def codes_unwanted(name: str, kind: CallKind, *, everywhere: bool) -> Text | None:
    """Why the backend called `name` is not to compute scores of INT8 codes for a kind of call; None if it is.

    Args:
        everywhere: wherever it can; otherwise only where that is faster by published rates.
    """
    backend = next((backend for backend in backends() if backend.name == name), None)
    if backend is None:
        return Phrase("codes_none_rule", "{name} has no INT8 scores", name=name)
    if not everywhere and not machine.codes_first(kind.device):
        return Phrase(
            "codes_not_faster",
            "by published rates INT8 is not faster on this {device} device (bits 8 tries it)",
            device=kind.device.type,
        )
    return without_codes(backend, kind)


def passed_over(taken: str, kind: CallKind) -> Text | None:
    """Why `auto` did not take the first backend it considers on a GPU but `taken`; None if it did."""
    best = next(backend for backend in backends() if _considers(backend, kind))
    if kind.device.type != "cuda" or best.name == taken:
        return None
    return Phrase(
        "note_passed_over",
        "backend {taken} serves this run, not the faster {best}: {reason}",
        taken=taken,
        best=best.name,
        reason=best.refuses(kind),
    )


def _considers(backend: Backend, kind: CallKind) -> bool:
    """Whether `auto` may take a backend where the kind is."""
    return backend.automatic and kind.device.type not in backend.not_automatic_on
