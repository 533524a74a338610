"""Stand-ins for peers of the kernel bench: one that is right, and each way in which one can go wrong."""

from __future__ import annotations

import os
import threading

from torch import Tensor

from benchmarks.kernels.inputs import KeptBlocks
from benchmarks.kernels.peer_rows import reference
from benchmarks.kernels.peers import Peer, Run


def _peer(name: str, make: object, **options: object) -> tuple[Peer, ...]:
    return (Peer(name, "torch", "kept", (128, 64), make, needs_cuda=False, **options),)  # type: ignore[arg-type]


def _right(call: KeptBlocks) -> Run:
    return lambda: reference(call, dense=False)


def _dense(call: KeptBlocks) -> Run:
    return lambda: reference(call, dense=True)


def _wrong_at_full_size(call: KeptBlocks) -> Run:
    small = call.shape.name == "gate"

    def attend() -> Tensor:
        return reference(call, dense=False) * (1.0 if small else 1.01)

    return attend


def _raises(call: KeptBlocks) -> Run:
    raise NotImplementedError("this GPU | is not served")


def _dies_after_its_first_row(call: KeptBlocks) -> Run:
    if call.shape.name != "gate" and float(call.keep.float().mean()) < 0.5:
        print("first words\n  last words", flush=True)
        os._exit(7)
    return _right(call)


def _never_answers(call: KeptBlocks) -> Run:
    def attend() -> Tensor:
        threading.Event().wait()
        return call.q

    return attend


DENSE = (Peer("dense", "torch", "dense", (128, 128), _dense, needs_cuda=False),)
RIGHT = _peer("right", _right)
WRONG = _peer("ignores the selection", _dense)
WRONG_AT_FULL_SIZE = _peer("wrong at full size", _wrong_at_full_size)
RAISES = _peer("raises", _raises)
DIES = _peer("dies", _dies_after_its_first_row)
DEADLOCKS = _peer("deadlocks", _never_answers)
OTHER_SIZES = _peer("other sizes", _right, dims=(128,))
